//! Where the profile of the gate `-` comes from, without a terminal, a home or anything else in the environment; and that
//! no command takes one where other users could see it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::gate::{Gate, profile};
use crate::home::{Home, postern, run, run_with};
use crate::manual::commands;

/// A folder as systemd makes one for a service.
fn credentials(home: &Home, profile: Option<&str>) -> String {
    let folder = home.path("credentials");
    fs::create_dir_all(&folder).unwrap();
    if let Some(profile) = profile {
        fs::write(folder.join("postern-profile"), profile).unwrap();
        fs::set_permissions(folder.join("postern-profile"), fs::Permissions::from_mode(0o400)).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_systemd_credential_is_enough() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let home = Home::new();
    let folder = credentials(&home, Some(&gate.profile.to_line()));
    run(postern(&["knock", "-", "ssh"]).env("CREDENTIALS_DIRECTORY", &folder)).expect(0);
    assert_eq!(gate.knock().services(), ["ssh"]);
    gate.assert_no_more();
}

#[test]
fn the_first_origin_is_the_one_that_counts() {
    let home = Home::new();
    let [file, variable, credential] = [0; 3].map(|_| Gate::listen(&["127.0.0.1"], 1, 22));
    let folder = credentials(&home, Some(&credential.profile.to_line()));
    fs::write(home.path("profile"), &*file.profile.to_line()).unwrap();
    let line = variable.profile.to_line();

    let given = home.path("profile").to_str().unwrap().to_owned();
    let args = ["knock", "-", "--profile-file", &given];
    run(postern(&args).env("POSTERN_PROFILE", &*line).env("CREDENTIALS_DIRECTORY", &folder)).expect(0);
    file.knock();
    let args = ["knock", "-", "--profile-file", "-"];
    let mut stdin = postern(&args);
    stdin.env("POSTERN_PROFILE", &*line).env("CREDENTIALS_DIRECTORY", &folder);
    run_with(&mut stdin, &file.profile.to_line()).expect(0);
    file.knock();
    run(postern(&["knock", "-"]).env("POSTERN_PROFILE", &*line).env("CREDENTIALS_DIRECTORY", &folder))
        .expect(0);
    variable.knock();
    // What is set to nothing is not set.
    run(postern(&["knock", "-"]).env("POSTERN_PROFILE", "").env("CREDENTIALS_DIRECTORY", &folder)).expect(0);
    credential.knock();
    for gate in [file, variable, credential] {
        gate.assert_no_more();
    }
}

#[test]
fn a_credential_that_does_not_read_is_an_error() {
    let home = Home::new();
    let none = credentials(&home, None);
    let outcome = run(postern(&["knock", "-"]).env("CREDENTIALS_DIRECTORY", &none)).expect(3);
    assert!(outcome.stderr.contains("or from the systemd credential postern-profile"), "{}", outcome.stderr);
    let line = profile(22).to_line();
    let folder = credentials(&home, Some(&line[..line.len() - 4]));
    let outcome = run(postern(&["knock", "-"]).env("CREDENTIALS_DIRECTORY", &folder)).expect(3);
    assert!(outcome.stderr.contains("credentials/postern-profile: the profile is cut"), "{}", outcome.stderr);
    // A gate by its name, and an import, are not the service's.
    let outcome = run(home.postern(&["knock", "home"]).env("CREDENTIALS_DIRECTORY", &folder)).expect(3);
    assert!(outcome.stderr.contains("config.toml: no such file"), "{}", outcome.stderr);
    run(home.postern(&["import", "home"]).env("CREDENTIALS_DIRECTORY", &folder)).expect(2);
}

/// Only `import` takes a profile as an argument, and says that it should not have been one.
#[test]
fn no_command_takes_a_profile_as_an_argument() {
    let home = Home::with("home", &profile(22));
    let line = profile(22).to_line();
    let secret = &line[line.len() - 40..];
    for command in commands() {
        for args in [
            &[command.as_str(), &line][..],
            &[&command, &line, "22"],
            &[&command, "home", &line],
            &[&command, "-", &line],
            &[&command, "--gate", &line, "home", "22"],
            &[&command, "--profile", &line],
        ] {
            let outcome = run(&mut home.postern(args));
            assert!(!format!("{}{}", outcome.stdout, outcome.stderr).contains(secret), "{args:?}");
            assert_ne!(outcome.code, 0, "{args:?}");
        }
    }
    let warned = run(&mut home.postern(&["import", "other", &line])).expect(0);
    assert!(warned.stderr.contains("other users of this host can see a profile in the arguments"));
}
