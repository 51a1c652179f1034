//! The examples of `client/docs/automation.md`, as they stand there, against a real gate and a real sshd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{KNOCK_PORTS, SERVICES};
use postern_tests::netns::Family;
use postern_tests::process::{Finished, run, succeed};
use postern_tests::programs;
use postern_tests::wait::LONG;
use serde_json::Value;

use crate::ssh_tools::User;

const FAMILY: Family = Family::V4;

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client")
}

/// The example that begins with a comment of this name, without that.
fn example(name: &str) -> Result<String> {
    let document = fs::read_to_string(client().join("docs/automation.md"))?;
    let mut blocks = document.split("\n```").skip(1).step_by(2);
    let heading = format!("# {name}\n");
    let found = blocks.find_map(|block| block.split_once('\n')?.1.strip_prefix(&heading));
    Ok(found.with_context(|| format!("no example {name}"))?.to_owned() + "\n")
}

/// Runs a shell command of the user's, with more environment; the door is shut to him before.
fn attempt(user: &User, script: &str, variables: &[(&str, &str)]) -> Result<Finished> {
    user.door_is_shut()?;
    let mut shell = user.home.command(&user.world.home, &["bash", "-eo", "pipefail", "-c", script])?;
    shell.envs(variables.iter().copied());
    // Ansible logs in several times, and has Python start each time.
    run(shell, b"", LONG * 4)
}

fn address(user: &User) -> String {
    user.world.gate.host().ip(FAMILY).to_string()
}

/// The profile of a client whom the gate knows from its first start.
fn profile(user: &User) -> Result<String> {
    user.world.alice.profile(&[user.world.gate.host().ip(FAMILY)], &KNOCK_PORTS, &SERVICES, true)
}

#[test]
fn ansible_reaches_a_gate_by_the_inventory() -> Result<()> {
    let user = User::new(FAMILY)?;
    user.world.opens(FAMILY)?;
    // What the inventory says has to do alone.
    fs::remove_file(user.home.path(".ssh/config"))?;
    fs::write(user.home.path("inventory.yml"), example("inventory.yml")?)?;
    let pinged = attempt(&user, &example("ansible.sh")?, &[("ANSIBLE_NOCOLOR", "1")])?;
    ensure!(pinged.code == 0 && pinged.text().contains("\"ping\": \"pong\""), "{pinged:?}");
    user.leaves()
}

#[test]
fn the_job_of_gitlab_deploys() -> Result<()> {
    let user = User::new(FAMILY)?;
    user.world.opens(FAMILY)?;
    let job = yaml(&example(".gitlab-ci.yml")?)?["deploy"].take();
    ensure!(job["variables"]["TARGET"] == "deploy@bastion", "{job}");
    let lines = job["script"].as_array().context("the job has a script")?;
    let lines: Option<Vec<_>> = lines.iter().map(Value::as_str).collect();
    let script = lines.context("lines of a script are texts")?.join("\n");

    // A home as a runner has it, with a project, and the variables of type file elsewhere.
    for name in ["id_ed25519", "known_hosts"] {
        fs::rename(user.home.path(".ssh").join(name), user.home.path(name))?;
    }
    for folder in [".ssh", ".config"] {
        fs::remove_dir_all(user.home.path(folder))?;
    }
    fs::create_dir(user.home.path("public"))?;
    fs::write(user.home.path("public/index.html"), "deployed")?;
    let folder = user.world.gate.directory().join("www");
    let variables = [
        ("TARGET", "root@bastion"),
        ("FOLDER", folder.to_str().context("a path that is text")?),
        ("SSH_KEY", "id_ed25519"),
        ("SSH_KNOWN_HOSTS", "known_hosts"),
        ("POSTERN_PROFILE", &profile(&user)?),
    ];
    let deployed = attempt(&user, &script, &variables)?;
    ensure!(deployed.code == 0 && deployed.text().ends_with("\nindex.html\n"), "{deployed:?}");
    ensure!(fs::read_to_string(folder.join("index.html"))? == "deployed");
    user.leaves()
}

/// It needs nothing but the profile, and says in what it fails.
#[test]
fn the_shell_job_goes_in_or_says_why_not() -> Result<()> {
    let user = User::new(FAMILY)?;
    user.world.opens(FAMILY)?;
    for file in [".ssh/config", ".config/postern/config.toml"] {
        fs::remove_file(user.home.path(file))?;
    }
    let (job, target, profile) = (example("job.sh")?, format!("root@{}", address(&user)), profile(&user)?);
    let through = attempt(&user, &job, &[("TARGET", &target), ("POSTERN_PROFILE", &profile)])?;
    ensure!(through.code == 0 && through.text().starts_with("open after "), "{through:?}");
    ensure!(through.text().lines().count() == 2, "{through:?}");

    let cut = &profile[..profile.len() - 8];
    let failed = attempt(&user, &job, &[("TARGET", &target), ("POSTERN_PROFILE", cut)])?;
    ensure!(failed.code == 3 && failed.text().is_empty(), "{failed:?}");
    ensure!(failed.stderr.starts_with("no way in: POSTERN_PROFILE: the profile is cut"), "{failed:?}");
    user.leaves()
}

/// The unit is one for systemd, and its credential is the one that the client looks for.
#[test]
fn the_unit_is_good_and_its_credential_opens() -> Result<()> {
    let user = User::new(FAMILY)?;
    user.world.opens(FAMILY)?;
    let unit = example("/etc/systemd/system/fetch.service")?;
    let postern = programs::directory()?.join("postern").display().to_string();
    let file = user.home.path("fetch.service");
    fs::write(&file, unit.replace("/usr/local/bin/postern", &postern).replace("/usr/bin/curl", "/bin/true"))?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(&file);
    let verified = succeed(verify, b"", LONG)?;
    ensure!(!verified.stderr.contains("fetch.service"), "{verified:?}");

    // What systemd would do with it.
    let credential = unit.lines().find_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next());
    let folder = user.home.path("credentials");
    fs::create_dir(&folder)?;
    fs::write(folder.join(credential.context("the unit has a credential")?), profile(&user)?)?;
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
    let line = line.context("the unit knocks")?.replace("web", "ssh");
    let folder = folder.to_str().context("a path that is text")?;
    let knocked = attempt(&user, &format!("unset HOME; {line}"), &[("CREDENTIALS_DIRECTORY", folder)])?;
    ensure!((knocked.code, knocked.text(), knocked.stderr.as_str()) == (0, String::new(), ""), "{knocked:?}");
    user.leaves()
}

/// The examples of what is printed, and what is printed there, by a real validator.
#[test]
fn the_printed_objects_are_what_the_schema_says() -> Result<()> {
    let user = User::new(FAMILY)?;
    let mut objects = Vec::new();
    for (name, line) in [
        ("knock", "knock bastion ssh --wait 10"),
        ("gates", "gates"),
        ("ssh-config", "ssh-config bastion --install"),
        ("failure", "proxy bastion 22"),
    ] {
        let printed = attempt(&user, &format!("postern {line} --json || true"), &[])?.text();
        objects.push(format!("{name} {printed}"));
    }
    let document = fs::read_to_string(client().join("docs/automation.md"))?;
    let shown = document.split("\n```json\n").nth(1).and_then(|rest| rest.split("```").next());
    for line in shown.context("the document shows what is printed")?.lines() {
        let name = if line.contains("\"error\"") { "failure" } else { "knock" };
        objects.push(format!("{name} {line}\n"));
    }
    let mut validate = Command::new("python3");
    validate.arg(client().join("tests/validate.py")).arg(client().join("docs/output.schema.json"));
    let answers = succeed(validate, objects.concat().as_bytes(), LONG)?.text();
    ensure!(answers == "ok\n".repeat(6), "{answers}of {objects:#?}");
    user.leaves()
}

/// YAML as JSON, by the parser that Ansible brings.
fn yaml(text: &str) -> Result<Value> {
    let mut python = Command::new("python3");
    python.args(["-c", "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"]);
    Ok(serde_json::from_slice(&succeed(python, text.as_bytes(), LONG)?.stdout)?)
}
