//! `postern import` of each form in which a profile is handed over.

use std::fs;
use std::process::{Command, Stdio};

use postern_proto::Profile;

use super::with_usual_file;
use crate::gate::profile;
use crate::home::{Home, run, run_with};
use crate::ssh::{Terminal, keygen, sk_keygen, tool};

/// The profile as age encrypts it to the key of this file.
fn encrypt(home: &Home, profile: &Profile, to: &str, out: &str, args: &[&str]) {
    fs::write(home.path("line"), profile.to_line().as_bytes()).unwrap();
    let to = ["-R", to, "-o", out];
    tool(home, "age", &[args, &to, &["line"]].concat()).expect(0);
    fs::remove_file(home.path("line")).unwrap();
}

fn has(home: &Home, name: &str) -> bool {
    run(&mut home.postern(&["gates"])).expect(0).stdout.contains(&format!("{name}\n"))
}

#[test]
fn what_age_encrypted_to_the_key_is_imported() {
    let home = Home::new();
    let key = keygen(&home, ".ssh/id_ed25519", "");
    tool(&home, "ssh-keygen", &["-q", "-t", "rsa", "-N", "", "-f", "rsa"]).expect(0);
    let mut profile = profile(22);
    profile.identities = vec![key.clone()];
    for (number, (args, to, more)) in [
        (&[][..], ".ssh/id_ed25519.pub", &[][..]),
        (&["-a"], ".ssh/id_ed25519.pub", &[]),
        (&["-a"], "rsa.pub", &["--identity", "rsa"]),
    ]
    .into_iter()
    .enumerate()
    {
        encrypt(&home, &profile, to, "profile.age", args);
        let (file, stdin) = (format!("file-{number}"), format!("stdin-{number}"));
        run(&mut home.postern(&[&["import", &file, "--file", "profile.age"][..], more].concat())).expect(0);
        let mut piped = home.postern(&[&["import", &stdin, "-"][..], more].concat());
        piped.stdin(Stdio::from(fs::File::open(home.path("profile.age")).unwrap()));
        assert!(piped.output().unwrap().status.success());
        assert!(has(&home, &file) && has(&home, &stdin));
        fs::remove_file(home.path("profile.age")).unwrap();
    }
    let bare = key.to_string();
    let bare = bare.trim_end_matches(" alice@laptop");
    assert!(home.text().contains(&format!("identities = [\"{bare}\"]")), "{}", home.text());
}

#[test]
fn the_passphrase_of_the_key_is_asked_for() {
    let home = Home::new();
    keygen(&home, "key", "correct horse");
    encrypt(&home, &profile(22), "key.pub", "profile.age", &["-a"]);
    let mut terminal = Terminal::start(&home, "postern import home - -i key < profile.age");
    terminal.answer("Enter passphrase for key 'key': ", "correct horse");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 0, "{shown}");
    assert!(has(&home, "home"));
}

#[test]
fn what_cannot_be_decrypted_says_why() {
    let (_, _gate, home) = with_usual_file();
    keygen(&home, "other", "");
    sk_keygen(&home, "sk", &[]);
    encrypt(&home, &profile(22), "other.pub", "profile.age", &["-a"]);
    let text = fs::read_to_string(home.path("profile.age")).unwrap();
    fs::write(home.path("cut.age"), &text[..text.len() - 120]).unwrap();
    fs::write(home.path("changed.age"), text.replacen("YWdl", "YWdm", 1)).unwrap();
    for (file, more, says) in [
        ("profile.age", &[][..], "profile.age: encrypted to another key than that in "),
        ("profile.age", &["-i", "sk"], "sk belongs to a security key"),
        (
            "profile.age",
            &["-i", "other.pub"],
            "profile.age: not decrypted: other.pub is the public half alone",
        ),
        ("profile.age", &["-i", "none"], "profile.age: not decrypted: none: cannot read"),
        ("cut.age", &["-i", "other"], "cut.age: what age encrypted is damaged or cut"),
        ("changed.age", &["-i", "other"], "changed.age: what age encrypted is damaged or cut"),
    ] {
        let args = [&["import", "new", "--file", file][..], more].concat();
        let refused = run(&mut home.postern(&args)).expect(3).stderr;
        assert!(refused.contains(says), "{refused}");
        assert!(!refused.contains("damaged") || !refused.contains("ssh-agent"));
    }
    assert!(!has(&home, "new"));
}

#[test]
fn what_decoders_of_qr_codes_print_is_imported() {
    let home = Home::new();
    let line = profile(22).to_line();
    run_with(&mut home.postern(&["import", "qr", "-"]), &format!("QR-Code:{}\n", *line)).expect(0);
    fs::write(home.path("scanned"), format!("QR-Code:{}\n", *line)).unwrap();
    run(&mut home.postern(&["import", "file", "--file", "scanned"])).expect(0);
    assert!(has(&home, "qr") && has(&home, "file"));
    // A profile without keys brings none.
    assert!(!home.text().contains("identities"), "{}", home.text());
    let bad = run_with(&mut home.postern(&["import", "bad", "-"]), "QR-Code:hello\n").expect(3).stderr;
    assert!(bad.contains("a profile begins with \"postern1:\""), "{bad}");
}

/// By the means that people have: age decrypts it too, and what it prints is the line.
#[test]
fn age_itself_decrypts_to_the_line() {
    let home = Home::new();
    keygen(&home, "key", "");
    encrypt(&home, &profile(22), "key.pub", "profile.age", &["-a"]);
    let mut age = Command::new("age");
    let line = run(age.args(["-d", "-i", "key", "profile.age"]).current_dir(home.path(""))).expect(0).stdout;
    run_with(&mut home.postern(&["import", "home", "-"]), &line).expect(0);
}
