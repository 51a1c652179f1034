//! What keeps the client easy to build and to carry to another system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::run;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The one module that may ask what only Linux answers.
const SYSTEM: &str = "system";

/// What only Linux has, or has together with few others.
const LINUX_ONLY: [&str; 15] = [
    "os::linux",
    "os::android",
    "target_os",
    "\"/proc",
    "\"/sys",
    "SocketFlags",
    "socket_with",
    "accept_with",
    "pipe_with",
    "rustix::event::epoll",
    "rustix::net::netdevice",
    "rustix::net::netlink",
    "rustix::thread",
    "rustix::system",
    "memfd",
];

#[test]
fn no_call_that_only_linux_has_stands_outside_one_module() {
    let folder = Path::new(HERE).join("src");
    let sources = sources(&folder);
    assert!(sources.len() > 20, "{sources:?}");
    for source in sources {
        let place = source.strip_prefix(&folder).unwrap();
        if place.with_extension("").starts_with(SYSTEM) {
            continue;
        }
        let text = fs::read_to_string(&source).unwrap();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            let found = LINUX_ONLY.iter().find(|only| line.contains(*only));
            assert!(found.is_none(), "{}:{}: {line}", place.display(), index + 1);
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_client_is_built_without_pcap_and_without_the_server() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--package", "postern-client", "--edges", "normal,build", "--prefix", "none"]);
    cargo.args(["--format", "{p}", "--locked", "--offline"]).current_dir(HERE);
    let tree = run(&mut cargo).expect(0).stdout;
    let names: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"postern-proto") && names.len() > 30, "{tree}");
    let unwanted = |name: &&&str| name.contains("pcap") || **name == "postern-server";
    let unwanted: Vec<_> = names.iter().filter(unwanted).collect();
    assert!(unwanted.is_empty(), "{unwanted:?}");
}
