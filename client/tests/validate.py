"""Checks what postern --json printed against the schema: each line of stdin is `NAME TEXT`, the name of one of the
schema's objects and what was printed; the line that answers it is "ok", or says what is wrong.

The schema lets fields be added. Here none may be that it does not describe: it describes this version.
"""

import json
import sys

from jsonschema import Draft202012Validator, FormatChecker

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)


def forbid_others(node):
    if isinstance(node, dict):
        if "properties" in node:
            node.setdefault("additionalProperties", False)
        node = node.values()
    if not isinstance(node, str):
        for child in node if hasattr(node, "__iter__") else ():
            forbid_others(child)


forbid_others(schema["$defs"])
checker = FormatChecker(["ipv4", "ipv6"])
for line in sys.stdin:
    name, _, text = line.partition(" ")
    if name not in schema["$defs"]:
        print(f"the schema has no object {name}", flush=True)
        continue
    one = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
    wrong = None
    for allowed in (schema, one):
        for error in Draft202012Validator(allowed, format_checker=checker).iter_errors(json.loads(text)):
            wrong = f"{error.json_path}: {error.message}"
    print("ok" if wrong is None else wrong.replace("\n", " "), flush=True)
