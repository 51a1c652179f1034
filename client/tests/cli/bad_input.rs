//! Each kind of bad input has its own clear error and its exit code, and no error repeats a secret.

use crate::gate::profile;
use crate::home::{Home, Outcome, postern, run, run_with};

/// Part of the secret, and of the profile line, of [`profile`].
const SECRET: &str = "MzMzMzMz";

#[track_caller]
fn check(outcome: Outcome, code: i32, says: &str) {
    let outcome = outcome.expect(code);
    assert!(outcome.stderr.contains(says), "expected: {says}\nstderr: {}", outcome.stderr);
    assert!(outcome.stderr.starts_with("postern: "), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    assert!(!outcome.stderr.contains(SECRET), "a secret is repeated: {}", outcome.stderr);
}

#[test]
fn arguments() {
    let home = Home::with("home", &profile(22));
    let line = profile(22).to_line();
    assert!(line.contains(SECRET));
    for (args, code, says) in [
        (&[][..], 2, "requires a subcommand"),
        (&["open"], 2, "unrecognized subcommand 'open'"),
        (&["knock"], 2, "<GATE>"),
        (&["knock", "a b"], 2, "a gate name is 1 to 64 letters"),
        (&["knock", "home", "s/h"], 2, "a service name is 1 to 32 letters"),
        (&["knock", "home", "ssh", "ssh"], 2, "service ssh is named twice"),
        (&["knock", "home", "--window", "5"], 2, "a window is a whole number of seconds"),
        (&["knock", "home", "--wait", "soon"], 2, "a number of seconds"),
        (&["knock", "home", "--wait=-1"], 2, "a number of seconds"),
        (&["knock", "home", "--repeat", "0"], 2, "0 is not in 1..=20"),
        (&["knock", "home", "--repeat", "21"], 2, "21 is not in 1..=20"),
        (
            &["knock", "home", "--source", "here"],
            2,
            "the source is auto, observed, or the unicast IP address",
        ),
        (
            &["knock", "home", "--source", "127.0.0.1"],
            2,
            "the source is auto, observed, or the unicast IP address",
        ),
        (&["knock", "home", "-6", "--source", "192.0.2.1"], 2, "--source 192.0.2.1 is an IPv4 address"),
        (&["knock", "home", "-4", "-6"], 2, "cannot be used with"),
        (&["knock", "home", "--from-port", "0"], 2, "--from-port"),
        (&["knock", "home", "--from-port", "1", "--wait", "1"], 2, "cannot be used with"),
        (&["knock", "home", "vpn", "--wait", "1"], 2, "service vpn has no TCP port"),
        (&["knock", "home", "--profile-file", "x"], 2, "--profile-file is the profile of the gate \"-\""),
        (&["knock", "home", "--wait", "1", "--dry-run"], 2, "cannot be used with"),
        (&["knock", "home", "--wait", "1", "--hex"], 2, "cannot be used with"),
        (&["close", "home", "web"], 3, "gate home has no service web; it has ssh, vpn"),
        (&["close", "home", "ssh", "ssh"], 2, "service ssh is named twice"),
        (&["close", "home", "--window", "1m"], 2, "unexpected argument '--window'"),
        (&["doctor", "work"], 3, "no gate work in "),
        (&["doctor", "home", "--ntp", "a b"], 2, "a host is an IP address without brackets"),
        (&["doctor", "home", "--profile-file", "x"], 2, "--profile-file is the profile of the gate \"-\""),
        (&["proxy", "home", "ssh"], 2, "<PORT>"),
        (&["proxy", "home", "22", "--exact=often"], 2, "invalid value 'often' for '--exact"),
        (&["proxy", "home", "22", "--timeout", "0"], 2, "a number of seconds"),
        (&["proxy", "home", "22", "--gate", "-", "--profile-file", "-"], 2, "cannot come from stdin"),
        (&["sequence", "127.0.0.1"], 2, "<STEP>..."),
        (&["sequence", "127.0.0.1", "0"], 2, "\"0\" is no step: a step is a port from 1 to 65535"),
        (&["sequence", "127.0.0.1", "99999"], 2, "\"99999\" is no step"),
        (&["sequence", "127.0.0.1", "22:foo", "23"], 2, "\"22:foo\" is no step"),
        (&["sequence", "127.0.0.1", "22", "ssh"], 2, "\"ssh\" is no step"),
        (&["sequence", "a/b", "22"], 2, "a host is an IP address without brackets, or a DNS name"),
        (&["sequence", "a b", "ssh"], 2, "a gate name is 1 to 64 letters"),
        (&[&["sequence", "127.0.0.1"][..], &["1"; 33]].concat(), 2, "a sequence has 1 to 32 steps"),
        (&["sequence", "127.0.0.1", "1", "-d", "soon"], 2, "a whole number of milliseconds, up to an hour"),
        (&["sequence", "127.0.0.1", "1", "--delay=-1"], 2, "a whole number of milliseconds, up to an hour"),
        (&["sequence", "127.0.0.1", "1", "-4", "-6"], 2, "cannot be used with"),
        (&["sequence", "127.0.0.1", "1", "--print", "--wait", "1"], 2, "cannot be used with"),
        (&["sequence", "127.0.0.1", "1", "--print", "-v"], 2, "cannot be used with"),
        (&["sequence", "127.0.0.1", "1", "--port", "22"], 2, "--wait <SECONDS>"),
        (&["sequence", "127.0.0.1", "1", "--wait", "1"], 2, "--wait needs a TCP port to try: give --port"),
        (&["sequence", "127.0.0.1", "1", "--wait", "1", "--port", "0"], 2, "--port"),
        (&["sequence", "home", "old", "-u"], 2, "--udp is for steps"),
        (&["sequence", "work", "old"], 3, "no gate work in "),
        (&["sequence", "home", "old"], 3, "gate home has no sequence old; it has none"),
        (&["sequence", "127.0.0.1", "1", "-6"], 4, "cannot resolve 127.0.0.1: it has no IPv6 address"),
        (&["sequence", "255.255.255.255", "1:udp"], 4, "cannot send to 255.255.255.255:1: Permission denied"),
        (&["sequence", "255.255.255.255", "1"], 4, "cannot send to 255.255.255.255:1: "),
        (&["import", "new"], 2, "give the profile on stdin (-), in --file FILE or in POSTERN_PROFILE"),
        (&["import", "new", "-", "--file", "x"], 2, "cannot be used with"),
        (&["import", "new", "-", "--address", "a b"], 2, "a host is an IP address"),
        (&["import", &line], 2, "invalid value 'postern1:…'"),
        (&["knock", &line], 2, "invalid value 'postern1:…'"),
        (&["knock", "-", "--profile-file", &line], 3, "postern1:…: cannot read: No such file"),
        (&["knock", "work"], 3, "no gate work in "),
        (&["knock", "work"], 3, "config.toml; there is home"),
        (&["knock", "home", "web"], 3, "gate home has no service web; it has ssh, vpn"),
        (&["proxy", "work", "22"], 3, "is called work or lists it in its addresses"),
        (&["proxy", "home", "80"], 3, "no service at port 80/tcp; it has ssh (22/tcp), vpn (51820/udp)"),
        (&["proxy", "home", "51820"], 3, "no service at port 51820/tcp"),
        (&["knock", "home", "-6"], 4, "cannot resolve 127.0.0.1: it has no IPv6 address"),
    ] {
        check(run(&mut home.postern(args)), code, says);
    }
}

#[test]
fn gates_that_only_have_sequences() {
    let home = Home::with_text(
        "[gates.old]\naddresses = [\"127.0.0.1\"]\nsequences.ssh = { steps = [\"1:udp\"], opens = [\"22/tcp\"] }\n\
         sequences.any = { steps = [\"2:udp\"] }\n",
    );
    for (args, code, says) in [
        (
            &["knock", "old"][..],
            3,
            "gate old has no profile to knock with, only sequences: postern sequence old any or ssh",
        ),
        (&["sequence", "old", "web"], 3, "gate old has no sequence web; it has any, ssh"),
        (&["sequence", "old", "any", "--wait", "1"], 2, "--wait needs a TCP port to try: give --port"),
        (&["proxy", "old", "80"], 3, "gate old has no service at port 80/tcp; it has any, ssh (22/tcp)"),
        (&["close", "old"], 3, "gate old has no profile to knock with"),
        (&["proxy", "old", "22", "--exact"], 2, "a sequence says no source port: leave --exact out"),
        (&["proxy", "old", "22", "--close-on-exit"], 2, "a sequence cannot close: leave --close-on-exit out"),
        (&["proxy", "old", "22", "--window", "1m"], 2, "a sequence says neither window nor source"),
        (&["proxy", "old", "22", "--repeat", "2"], 2, "a sequence says neither window nor source"),
        (&["proxy", "old", "22", "--source", "observed"], 2, "a sequence says neither window nor source"),
    ] {
        check(run(&mut home.postern(args)), code, says);
    }
}

#[test]
fn configurations() {
    let home = Home::with("home", &profile(22));
    let good = home.text();
    for (from, to, says) in [
        ("gate-id = \"", "gate-id = \"x", "config.toml: line 2, column 11: gate-id: a gate id is 16 bytes"),
        (
            "client-id = \"",
            "client-id = \"x",
            "config.toml: line 3, column 13: client-id: a client id is 8 bytes",
        ),
        (
            "secret = \"",
            "secret = \"x",
            "config.toml: line 4, column 10: secret: a client secret is 32 bytes",
        ),
        (
            "secret = \"Mz",
            "secret = \"M",
            "config.toml: line 4, column 10: secret: a client secret is 32 bytes",
        ),
        ("secret", "sekret", "config.toml: line 4, column 1: unknown field `sekret`"),
        ("\"MzMz", "\"MzMz\" \"", "config.toml: line 4, column "),
        ("[\"127.0.0.1\"]", "[]", "config.toml: line 1, column 1: gate home has no address"),
        (
            "[\"127.0.0.1\"]",
            "[\"[::1]\"]",
            "config.toml: line 5, column 13: addresses: a host is an IP address without brackets",
        ),
        (
            "[65535]",
            "[65536]",
            "config.toml: line 6, column 10: ports: invalid value: integer, expected a nonzero u16",
        ),
        (
            "51820/udp",
            "51820",
            "config.toml: line 8, column 38: services: a port is a number from 1 to 65535 and a protocol",
        ),
        ("[gates.home]", "[gate.home]", "config.toml: line 1, column 2: unknown field `gate`"),
        ("[gates.home]", "[gates.home", "config.toml: line 1, column "),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from} is not in\n{good}");
        let broken = Home::with_text(&bad);
        for args in [&["knock", "home"][..], &["gates"], &["proxy", "home", "22"]] {
            check(run(&mut broken.postern(args)), 3, says);
        }
        let import = run_with(&mut broken.postern(&["import", "new", "-"]), &profile(22).to_line());
        check(import, 3, says);
        assert_eq!(broken.text(), bad, "a broken configuration is left alone");
    }
}

#[test]
fn places_of_the_configuration() {
    let home = Home::with("home", &profile(22));
    check(run(&mut postern(&["gates"])), 3, "no configuration: set HOME or POSTERN_CONFIG");
    check(
        run(postern(&["gates"]).env("HOME", home.path("none"))),
        3,
        "config.toml: no such file; `postern import",
    );
    check(run(&mut home.postern(&["gates", "--config", "."])), 3, ".: ");
    check(run(home.postern(&["gates"]).env("POSTERN_CONFIG", "elsewhere")), 3, "elsewhere: no such file");
    check(
        run(home.postern(&["gates"]).env("XDG_CONFIG_HOME", home.path("x"))),
        3,
        "/x/postern/config.toml: no such",
    );
    for given in [&["--config", ".config/postern/config.toml", "gates"][..], &["gates"]] {
        run(&mut home.postern(given)).expect(0);
    }
    let path = home.config();
    run(postern(&["gates"]).env("POSTERN_CONFIG", path)).expect(0);
    run(postern(&["gates"]).env("XDG_CONFIG_HOME", home.path(".config"))).expect(0);
}

#[test]
fn a_profile_in_the_place_of_a_path_is_not_printed() {
    let line = profile(22).to_line();
    for (args, code) in
        [(&["--help"][..], 0), (&["help", "knock"], 2), (&["knock", "--help"], 0), (&["gates"], 3)]
    {
        let outcome = run(postern(args).env("POSTERN_CONFIG", &*line)).expect(code);
        let printed = outcome.stdout + &outcome.stderr;
        assert!(!printed.contains(&line[20..40]), "{printed}");
    }
}

#[test]
fn a_configuration_that_others_can_read_is_refused() {
    let home = Home::with("home", &profile(22));
    for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
        home.chmod(mode);
        let says =
            format!("others can read or write it (mode {mode:04o}), and it holds secrets: chmod 600 /");
        check(run(&mut home.postern(&["knock", "home"])), 3, &says);
        check(run_with(&mut home.postern(&["import", "new", "-"]), &profile(22).to_line()), 3, &says);
    }
    home.chmod(0o400);
    run(&mut home.postern(&["gates"])).expect(0);
}

#[test]
fn profiles() {
    let line = profile(22).to_line();
    let without = |strip: fn(&mut postern_proto::Profile)| {
        let mut profile = profile(22);
        strip(&mut profile);
        profile.to_line().to_string()
    };
    let home = Home::new();
    for (bad, says) in [
        ("hello".to_owned(), "a profile begins with \"postern1:\""),
        ("\n".to_owned(), "a profile begins with \"postern1:\""),
        (line.replace("postern1", "postern9"), "a profile begins with \"postern1:\""),
        (line[..line.len() - 1].to_owned(), "the profile is cut"),
        (line[..40].to_owned(), "the profile is cut"),
        (format!("{}x", *line), "the profile is mistyped"),
        (line.replacen("MzMz", "MzMy", 1), "the profile is mistyped"),
        (line.replacen("MzMz", "Mz Mz", 1), "the profile is mistyped"),
        (without(|profile| profile.addresses.clear()), "the profile has no address to knock at"),
        (without(|profile| profile.ports.clear()), "the profile has no port to knock at"),
        (without(|profile| profile.services.clear()), "the profile has no service to open"),
    ] {
        let from_environment = run(postern(&["knock", "-"]).env("POSTERN_PROFILE", &bad));
        check(from_environment, 3, &format!("POSTERN_PROFILE: {says}"));
        check(run_with(&mut home.postern(&["import", "new", "-"]), &bad), 3, &format!("stdin: {says}"));
        std::fs::write(home.path("profile"), &bad).unwrap();
        let from_file = run(&mut home.postern(&["knock", "-", "--profile-file", "profile"]));
        check(from_file, 3, &format!("profile: {says}"));
        assert!(!home.config().exists());
    }
    check(
        run(&mut postern(&["knock", "-"])),
        3,
        "--profile-file FILE, from POSTERN_PROFILE or from the systemd credential postern-profile: give one",
    );
    check(run(postern(&["knock", "-"]).env("POSTERN_PROFILE", "")), 3, "give one of them");
    let huge = run_with(&mut home.postern(&["import", "new", "-"]), &"x".repeat(2 << 20));
    check(huge, 3, "stdin: cannot read: larger than 1 MiB");
}

#[test]
fn what_cannot_be_sent() {
    let mut profile = profile(22);
    // The kernel lets nobody send there without asking for it first.
    profile.addresses = vec!["255.255.255.255".parse().unwrap()];
    let home = Home::with("home", &profile);
    for args in [&["knock", "home"][..], &["proxy", "home", "22"]] {
        check(run(&mut home.postern(args)), 4, "cannot send to 255.255.255.255:65535: Permission denied");
    }
}

#[test]
fn failures_are_objects_where_json_is_asked_for() {
    let home = Home::with("home", &profile(22));
    for (args, code, says) in [
        (&["--json", "knock", "home", "--repeat", "x"][..], 2, "invalid value 'x'"),
        (&["knock", "work", "--json"], 3, "no gate work"),
        (&["knock", "home", "-6", "--json"], 4, "it has no IPv6 address"),
        (&["sequence", "127.0.0.1", "x", "y", "--json"], 2, "\"x\" is no step"),
        (&["sequence", "127.0.0.1", "1", "-v", "--json"], 2, "--json does not go with --verbose"),
        (&["proxy", "home", "22", "--json"], 2, "--json does not go with proxy"),
    ] {
        let outcome = run(&mut home.postern(args)).expect(code);
        let json = outcome.json();
        assert_eq!((&json["version"], &json["error"]["code"]), (&1.into(), &code.into()), "{json}");
        assert!(json["error"]["message"].as_str().unwrap().contains(says), "{json}");
        assert_eq!(outcome.stderr, "");
    }
}
