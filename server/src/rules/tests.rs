use super::*;

fn ruleset(steps: &str, door: &str) -> Result<Ruleset, Unfit> {
    let [window, timeout] = ["30s", "15s"].map(|text| text.parse().unwrap());
    Ruleset::new(
        Some("SSH".parse().unwrap()),
        &steps.parse().unwrap(),
        door.parse().unwrap(),
        window,
        timeout,
    )
}

/// `UPDATE_SNAPSHOTS=1` writes them anew.
#[test]
fn rulesets_print_as_in_the_snapshots() {
    for (file, steps, output) in [
        ("iptables.rules", "8881,7777:udp,9991", Output::Iptables),
        ("ip6tables.rules", "8881", Output::Ip6tables),
        ("knock.nft", "8881,7777:udp,9991", Output::Nft),
    ] {
        let printed = ruleset(steps, "22/tcp").unwrap().print(output);
        assert_eq!(printed, ruleset(steps, "22/tcp").unwrap().print(output));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rules/snapshots").join(file);
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &printed).unwrap();
        }
        assert_eq!(printed, std::fs::read_to_string(&path).unwrap(), "{file}");
    }
}

#[test]
fn what_rules_cannot_do_is_refused() {
    let ports = |count| (1..=count).map(|port: u16| (port * 10).to_string()).collect::<Vec<_>>().join(",");
    assert!(ruleset(&ports(16), "22/tcp").is_ok());
    assert_eq!(ruleset(&ports(17), "22/tcp").unwrap_err(), Unfit::Count(17));
    let port = |text: &str| text.parse::<Port>().unwrap();
    assert_eq!(ruleset("7000,22", "22/tcp").unwrap_err(), Unfit::Door(port("22/tcp")));
    assert!(ruleset("7000,22:udp", "22/tcp").is_ok());
    assert_eq!(ruleset("7000,8000,8000", "22/tcp").unwrap_err(), Unfit::Twice(port("8000/tcp")));
    assert!(ruleset("7000,8000,8000:udp,7000", "22/tcp").is_ok());
    let [short, long, longer] = ["1s", "11m", "2days"].map(|text| text.parse().unwrap());
    let new = |window, timeout| {
        Ruleset::new(None, &"7000".parse().unwrap(), port("22/tcp"), window, timeout).map(drop)
    };
    assert_eq!(new(short, long), Err(Unfit::Timeout));
    assert_eq!(new(longer, short), Err(Unfit::Window));
    assert_eq!(new(long, short), Ok(()));
    assert_eq!(Unfit::Timeout.to_string(), "a timeout is 10m at the most");
    assert_eq!(Unfit::Window.to_string(), "a window is 1day at the most");
}

#[test]
fn a_name_can_be_nothing_but_a_name() {
    for name in ["SSH", "a", "tcp22", "ABCDEFGHIJKLMNO"] {
        assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
    }
    for name in ["", "2", "SSH-1", "S H", "A\nB", "ABCDEFGHIJKLMNOP", "Ä", "a_b"] {
        assert_eq!(name.parse::<Name>(), Err(NameError), "{name:?}");
    }
}

#[test]
fn no_chain_is_too_long_for_iptables() {
    let longest = Some("ABCDEFGHIJKLMNO".parse().unwrap());
    let window = Window::DEFAULT;
    let steps = "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16".parse().unwrap();
    let ruleset = Ruleset::new(longest, &steps, "22/tcp".parse().unwrap(), window, window).unwrap();
    let printed = ruleset.print(Output::Ip6tables);
    let chains: Vec<_> =
        printed.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    assert_eq!(chains.len(), 1 + 16 + 4);
    assert!(chains.iter().all(|chain| chain.len() <= 28), "{chains:?}");
}

#[test]
fn ports_side_by_side_are_warned_of() {
    for (steps, opens) in [
        ("7000,7001,7002", true),
        ("7002,7001,7000", true),
        ("7000,7006", true),
        ("7000,7007", false),
        ("7000,7002,7001", false),
        ("7000,7001:udp", false),
        ("7000,8000,9000", false),
    ] {
        let ruleset = ruleset(steps, "22/tcp").unwrap();
        assert_eq!(ruleset.opens_to_a_scan(), opens, "{steps}");
        assert_eq!(ruleset.print(Output::Nft).contains("SIDE BY SIDE"), opens, "{steps}");
    }
}
