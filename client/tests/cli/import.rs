//! `postern import` and `postern gates`.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;

use serde_json::json;

use crate::gate::profile;
use crate::home::{Home, run, run_with};

const BY_HAND: &str = "# mine\n\n[gates.one] # the first\ngate-id = \"AAAAAAAAAAAAAAAAAAAAAA\"\nclient-id = \"AAAAAAAAAAA\"\n\
    secret = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\" # keep\naddresses = [ \"one.example.org\" ]\nports = [1]\n\
    services = {ssh=[\"22/tcp\"]}\n# the end\n";

#[test]
fn a_profile_comes_from_anywhere() {
    let line = profile(22).to_line();
    let home = Home::new();
    fs::write(home.path("profile"), format!("{}\n", *line)).unwrap();

    run(home.postern(&["import", "from-environment"]).env("POSTERN_PROFILE", &*line)).expect(0);
    run(&mut home.postern(&["import", "from-file", "--file", "profile"])).expect(0);
    run_with(&mut home.postern(&["import", "from-stdin", "-"]), &line).expect(0);
    run_with(&mut home.postern(&["import", "from-stdin.too", "--file", "-"]), &line).expect(0);
    let warned = run(&mut home.postern(&["import", "from-argument", &line])).expect(0).stderr;
    assert!(warned.contains("other users"), "{warned}");
    assert_eq!(warned.lines().count(), 1);
    assert!(!warned.contains(&line[20..40]));

    let listed = run(&mut home.postern(&["gates", "--json"])).expect(0);
    let gate = |name: &str| {
        let services = json!({"ssh": ["22/tcp"], "vpn": ["51820/udp"]});
        json!({
            "name": name, "addresses": ["127.0.0.1"], "ports": [65535], "services": services, "sequences": {}
        })
    };
    let names = ["from-argument", "from-environment", "from-file", "from-stdin", "from-stdin.too"];
    assert_eq!(listed.json(), json!({"version": 1, "gates": names.map(gate)}));
    let text = run(&mut home.postern(&["gates"])).expect(0).stdout;
    let secret = profile(22).secret.to_text();
    assert!(home.text().contains(&*secret));
    assert!(!text.contains(&*secret) && !listed.stdout.contains(&*secret));
}

#[test]
fn the_file_is_private_and_whole() {
    let home = Home::new();
    let line = profile(22).to_line();
    let outcome = run_with(&mut home.postern(&["import", "home", "-", "--json"]), &line).expect(0);
    let config = home.config();
    assert_eq!(outcome.json(), json!({"version": 1, "gate": "home", "config": config, "replaced": false}));
    assert_eq!(home.mode(".config/postern"), 0o700);
    assert_eq!(home.mode(".config/postern/config.toml"), 0o600);
    let mut files: Vec<_> =
        fs::read_dir(config.parent().unwrap()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.toml", "config.toml.lock"]);
}

#[test]
fn what_people_wrote_stays() {
    let home = Home::with_text(BY_HAND);
    run_with(&mut home.postern(&["import", "two", "-"]), &profile(22).to_line()).expect(0);
    assert!(home.text().starts_with(BY_HAND), "{}", home.text());
    assert!(
        home.text()[BY_HAND.len()..].contains("\nservices = { ssh = [\"22/tcp\"], vpn = [\"51820/udp\"] }\n")
    );
    run(&mut home.postern(&["gates"])).expect(0);
}

#[test]
fn only_force_replaces_a_gate() {
    let home = Home::with_text(BY_HAND);
    let line = profile(22).to_line();
    let refused = run_with(&mut home.postern(&["import", "one", "-"]), &line).expect(1);
    assert!(refused.stderr.contains("has a gate one already"), "{}", refused.stderr);
    assert_eq!(home.text(), BY_HAND);

    let outcome = run_with(&mut home.postern(&["import", "one", "-", "--force", "--json"]), &line).expect(0);
    assert_eq!(outcome.json()["replaced"], true);
    assert!(!home.text().contains("one.example.org"));
    assert!(home.text().contains("# mine") && home.text().contains("# the end"), "{}", home.text());
    let gates = run(&mut home.postern(&["gates", "--json"])).expect(0).json();
    assert_eq!(gates["gates"][0]["ports"], json!([65535]));
}

#[test]
fn sequences_outlive_the_profile_beside_them() {
    let table = "[gates.one.sequences.old]\nsteps = [\"7000\"] # keep\nopens = [\"22/tcp\"]\n";
    let dotted = "sequences.old = { steps = [\"7000\"], opens = [\"22/tcp\"] } # keep\n";
    let bare = "[gates.one]\naddresses = [\"one.example.org\"]\n";
    for text in [
        format!("{BY_HAND}{table}"),
        format!("{BY_HAND}{dotted}"),
        format!("{bare}{table}"),
        format!("{bare}{dotted}"),
        format!(
            "gates.one = {{ addresses = [\"one.example.org\"], {} }}",
            dotted.split(" # ").next().unwrap()
        ),
    ] {
        let home = Home::with_text(&text);
        run_with(&mut home.postern(&["import", "one", "-", "--force"]), &profile(22).to_line()).expect(0);
        let gates = run(&mut home.postern(&["gates", "--json"])).expect(0).json();
        let gate = &gates["gates"][0];
        assert_eq!((&gate["ports"], &gate["sequences"]), (&json!([65535]), &json!({"old": ["22/tcp"]})));
        let steps = run(&mut home.postern(&["sequence", "one", "old", "--print"])).expect(0).stdout;
        assert_eq!(steps, "7000:tcp\n");
        assert_eq!(home.text().contains("# keep"), text.contains("# keep"), "{}", home.text());
    }
}

#[test]
fn what_is_no_part_of_the_profile_stays() {
    let home = Home::with("one", &profile(22));
    let beside = "close-on-exit = true # keep\nidentity-file = \"~/.ssh/id_work\"\n";
    let home = Home::with_text(&format!("{}{beside}", home.text()));
    run_with(&mut home.postern(&["import", "one", "-", "--force"]), &profile(80).to_line()).expect(0);
    assert!(home.text().contains("close-on-exit = true"), "{}", home.text());
    assert!(home.text().contains("identity-file = \"~/.ssh/id_work\""), "{}", home.text());
    assert!(home.text().contains("80/tcp"), "{}", home.text());
}

#[test]
fn a_link_stays_a_link() {
    let home = Home::with_text(BY_HAND);
    fs::rename(home.config(), home.path("dotfile")).unwrap();
    symlink(home.path("dotfile"), home.config()).unwrap();
    run_with(&mut home.postern(&["import", "two", "-"]), &profile(22).to_line()).expect(0);
    assert!(fs::symlink_metadata(home.config()).unwrap().is_symlink());
    assert!(fs::read_to_string(home.path("dotfile")).unwrap().contains("[gates.two]"));
}

#[test]
fn imports_at_once_are_all_kept() {
    let home = Home::new();
    let line = profile(22).to_line();
    thread::scope(|scope| {
        for number in 0..24 {
            let (home, line) = (&home, &line);
            scope.spawn(move || {
                run_with(&mut home.postern(&["import", &format!("gate-{number}"), "-"]), line).expect(0);
            });
        }
    });
    let gates = run(&mut home.postern(&["gates", "--json"])).expect(0).json();
    assert_eq!(gates["gates"].as_array().unwrap().len(), 24);
}

#[test]
fn an_address_can_be_given_in_place_of_the_profiles() {
    let home = Home::new();
    let mut bare = profile(22);
    bare.addresses.clear();
    let line = bare.to_line();
    let refused = run_with(&mut home.postern(&["import", "home", "-"]), &line).expect(3);
    assert!(refused.stderr.contains("--address HOST"), "{}", refused.stderr);
    let args = ["import", "home", "-", "--address", "a.example.org", "--address", "2001:db8::1"];
    run_with(&mut home.postern(&args), &line).expect(0);
    let gates = run(&mut home.postern(&["gates", "--json"])).expect(0).json();
    assert_eq!(gates["gates"][0]["addresses"], json!(["a.example.org", "2001:db8::1"]));
}
