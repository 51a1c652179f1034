//! `postern sequence`, and the program called as `knock`: what goes out, and what is said about it.

use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use postern_proto::WallTime;
use postern_proto::keys::SequenceKey;
use postern_proto::sequence::Rolling;
use serde_json::json;

use crate::gate::ClosedPort;
use crate::home::{Home, postern, run, wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// A UDP port to be touched.
fn udp(address: &str) -> (UdpSocket, String) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let step = format!("{}:udp", socket.local_addr().unwrap().port());
    (socket, step)
}

/// One touch of a UDP port: one byte.
#[track_caller]
fn touched(socket: &UdpSocket) {
    let mut bytes = [0xff; 16];
    assert_eq!(socket.recv(&mut bytes).expect("a step arrives in time"), 1);
    assert_eq!(bytes[0], 0);
}

/// No further touch is waiting; to be asked when the client has ended.
#[track_caller]
fn untouched(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    socket.recv(&mut [0; 16]).expect_err("one step more than expected");
    socket.set_nonblocking(false).unwrap();
}

/// The program under the name of knockd's client.
fn knock(home: &Home, args: &[&str]) -> Command {
    let link = home.path("knock");
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_postern"), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

#[test]
fn each_step_is_one_touch() {
    let (first, one) = udp("127.0.0.1");
    let (second, two) = udp("127.0.0.1");
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = door.local_addr().unwrap().port().to_string();
    let begin = Instant::now();
    let outcome =
        run(&mut postern(&["sequence", "-v", "-d", "150", "127.0.0.1", &one, &tcp, &two, &one])).expect(0);
    assert!(begin.elapsed() >= Duration::from_millis(450));
    for socket in [&first, &first, &second] {
        touched(socket);
    }
    untouched(&first);
    untouched(&second);
    // It is given up as soon as it is there.
    let (mut stream, _) = door.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let port = |step: &str| step.trim_end_matches(":udp").to_owned();
    let expected = format!(
        "hitting udp 127.0.0.1:{one}\nhitting tcp 127.0.0.1:{tcp}\nhitting udp 127.0.0.1:{two}\n\
         hitting udp 127.0.0.1:{one}\nsent 4 steps to 127.0.0.1\n",
        one = port(&one),
        two = port(&two),
    );
    assert_eq!((outcome.stdout, outcome.stderr), (expected, String::new()));
}

#[test]
fn steps_are_spaced_by_themselves_and_all_udp_where_asked() {
    let (socket, step) = udp("127.0.0.1");
    let port = step.trim_end_matches(":udp");
    let begin = Instant::now();
    let args = ["sequence", "-u", "127.0.0.1", port, &format!("{port}:tcp"), &step, "--json"];
    let outcome = run(&mut postern(&args)).expect(0);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    for _ in 0..3 {
        touched(&socket);
    }
    let step = format!("{port}/udp");
    assert_eq!(
        outcome.json(),
        json!({
            "version": 1, "host": "127.0.0.1", "sequence": null, "steps": [step, step, step],
            "addresses": ["127.0.0.1"], "failed": [], "open": null,
        })
    );
}

#[test]
fn a_sequence_goes_to_every_address_of_its_gate() {
    let (v4, step) = udp("127.0.0.1");
    let v6 = UdpSocket::bind(("::1", v4.local_addr().unwrap().port())).unwrap();
    v6.set_read_timeout(Some(PATIENCE)).unwrap();
    let home = Home::with_text(&format!(
        "[gates.old]\naddresses = [\"127.0.0.1\", \"::1\", \"255.255.255.255\"]\n\
         sequences.two = {{ steps = [\"{step}\", \"{step}\"] }}\n"
    ));
    let outcome = run(&mut home.postern(&["sequence", "old", "two"])).expect(0);
    for socket in [&v4, &v4, &v6, &v6] {
        touched(socket);
    }
    assert_eq!(outcome.stdout, "sent 2 steps to 127.0.0.1\nsent 2 steps to ::1\n");
    assert!(outcome.stderr.starts_with("postern: not sent to 255.255.255.255:"), "{}", outcome.stderr);

    run(&mut home.postern(&["sequence", "old", "two", "-6"])).expect(0);
    for socket in [&v6, &v6] {
        touched(socket);
    }
    untouched(&v4);
    let printed = run(&mut home.postern(&["sequence", "old", "two", "--print"])).expect(0);
    assert_eq!(printed.stdout, format!("{step} {step}\n"));
    untouched(&v4);
    untouched(&v6);
}

#[test]
fn the_steps_of_a_rolling_sequence_are_those_of_the_moment() {
    let key = SequenceKey::from_bytes([0x77; 32]);
    let text = key.to_text();
    let (socket, step) = udp("127.0.0.1");
    let port = step.trim_end_matches(":udp");
    let home = Home::with_text(&format!(
        "[gates.bastion]\naddresses = [\"127.0.0.1\"]\n\
         sequences.mine = {{ rolling = \"20000-29999\", key = \"{0}\" }}\n\
         sequences.ours = {{ rolling = \"20000-29999/udp\", key = \"{0}\", length = 3, bound-to-source = false }}\n\
         sequences.one = {{ rolling = \"{port}-{port}/udp\", key = \"{0}\", length = 1 }}\n",
        *text
    ));
    let source = "192.0.2.7".parse().unwrap();
    let printed = |args: &[&str]| {
        let line = [&["sequence", "bastion"], args, &["--print"]].concat();
        run(&mut home.postern(&line)).expect(0)
    };
    for (args, range, length, is_bound, later) in [
        (&["mine", "--source", "192.0.2.7"][..], "20000-29999", 5, true, 0),
        (&["mine", "--source", "192.0.2.7", "--next"], "20000-29999", 5, true, 1),
        (&["ours"], "20000-29999/udp", 3, false, 0),
        (&["ours", "--next"], "20000-29999/udp", 3, false, 1),
    ] {
        let rolling = Rolling::new(&key, range.parse().unwrap(), length, is_bound).unwrap();
        let (outcome, epoch, json) = loop {
            let epoch = WallTime::from(SystemTime::now()).epoch();
            let (outcome, json) = (printed(args), printed(&[args, &["--json"]].concat()));
            if WallTime::from(SystemTime::now()).epoch() == epoch {
                break (outcome, if later == 0 { epoch } else { epoch.next() }, json);
            }
        };
        let steps = rolling.steps(epoch, source);
        assert_eq!(outcome.stdout, steps.to_string().replace(',', " ") + "\n", "{args:?}");
        assert!(outcome.stderr.starts_with("postern: good once, if begun within "), "{}", outcome.stderr);
        let (stderr, json) = (json.stderr.clone(), json.json());
        assert_eq!((json["steps"].clone(), stderr.as_str()), (json!(steps), ""));
        let good = json["good_for_seconds"].as_u64().unwrap() - later * 30;
        assert!((29..60).contains(&good), "{good} s");
    }
    let sent = run(&mut home.postern(&["sequence", "bastion", "one", "--json"])).expect(0);
    touched(&socket);
    assert_eq!(
        (sent.json()["steps"].clone(), sent.json()["addresses"].clone()),
        (json!(null), json!(["127.0.0.1"]))
    );
    let told = run(&mut home.postern(&["sequence", "bastion", "one"])).expect(0);
    touched(&socket);
    assert_eq!(told.stdout, "sent 1 step to 127.0.0.1\n");

    for (args, says) in [
        (&["bastion", "mine", "--print"][..], "say with --source from which address"),
        (&["bastion", "ours", "--source", "192.0.2.7"], "--source is for a rolling sequence that is bound"),
        (&["bastion", "one", "-6", "--source", "192.0.2.7"], "is an IPv4 address: leave -4 and -6 out"),
        (&["bastion", "one", "--source", "127.0.0.1"], "a unicast IP address"),
        (&["127.0.0.1", &step, "--next"], "--source and --next are for a rolling sequence"),
    ] {
        let outcome = run(&mut home.postern(&[&["sequence"], args].concat())).expect(2);
        assert!(outcome.stderr.contains(says) && !outcome.stderr.contains(&*text), "{}", outcome.stderr);
    }
    untouched(&socket);
}

#[test]
fn what_is_printed_is_what_knock_takes() {
    let (socket, step) = udp("127.0.0.1");
    let printed = run(&mut postern(&["sequence", "localhost", &step, &step, "--print"])).expect(0).stdout;
    untouched(&socket);
    let home = Home::new();
    let steps: Vec<_> = printed.split_whitespace().collect();
    run(&mut knock(&home, &[&["127.0.0.1"], &steps[..]].concat())).expect(0);
    touched(&socket);
    touched(&socket);
    untouched(&socket);
}

#[test]
fn waiting_ends_when_the_door_opens_or_in_vain() {
    let (socket, step) = udp("127.0.0.1");
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let home = Home::with_text(&format!(
        "[gates.old]\naddresses = [\"127.0.0.1\"]\n\
         sequences.ssh = {{ steps = [\"{step}\"], opens = [\"{port}/tcp\", \"1/udp\"] }}\n"
    ));
    for args in [
        &["sequence", "old", "ssh", "--wait", "20", "--json"][..],
        &["sequence", "127.0.0.1", &step, "--wait", "20", "--port", &port.to_string(), "--json"],
    ] {
        let mut json = run(&mut home.postern(args)).expect(0).json();
        touched(&socket);
        let after = json["open"][0]["after_ms"].take();
        assert!(after.as_u64().unwrap() < 20_000, "{after}");
        assert_eq!(json["open"], json!([{"address": "127.0.0.1", "port": port, "after_ms": null}]));
    }

    let closed = ClosedPort::new().number().to_string();
    let args = ["sequence", "old", "ssh", "--wait", "0.3", "--port", &closed];
    let outcome = run(&mut home.postern(&args)).expect(5);
    touched(&socket);
    let says = format!("postern: waited 0.3 s in vain: not open: port {closed} (");
    assert!(outcome.stderr.starts_with(&says), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("overtaken on its way"), "{}", outcome.stderr);
}

#[test]
fn a_proxy_sends_the_sequence_that_opens_its_port() {
    let (socket, step) = udp("127.0.0.1");
    let door = ClosedPort::new();
    let port = door.number();
    let home = Home::with_text(&format!(
        "[gates.old]\naddresses = [\"127.0.0.1\"]\n\
         sequences.ssh = {{ steps = [\"{step}\"], opens = [\"{port}/tcp\"] }}\n"
    ));
    let mut command = home.postern(&["proxy", "127.0.0.1", &port.to_string(), "--timeout", "20"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    touched(&socket);
    let listener = door.open();
    let far = thread::spawn(move || std::io::Write::write_all(&mut listener.accept().unwrap().0, b"hello"));
    let mut heard = String::new();
    child.stdout.take().unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!((wait(&mut child), heard.as_str()), (0, "hello"));
    far.join().unwrap().unwrap();
    untouched(&socket);
}

#[test]
fn called_as_knock_it_is_knock() {
    let home = Home::new();
    let (socket, step) = udp("127.0.0.1");
    let port = step.trim_end_matches(":udp");
    let silent = run(&mut knock(&home, &["127.0.0.1", &step])).expect(0);
    assert_eq!((silent.stdout, silent.stderr), (String::new(), String::new()));
    touched(&socket);
    let begin = Instant::now();
    let told = run(&mut knock(&home, &["-uvd", "200", "-46", "-4", "localhost", port, port])).expect(0);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(told.stdout, format!("hitting udp 127.0.0.1:{port}\n").repeat(2));
    touched(&socket);
    touched(&socket);

    let version = run(&mut knock(&home, &["-V"])).expect(0).stdout;
    assert!(version.starts_with("knock ") && version.contains("postern"), "{version}");
    for (args, says) in [
        (&[][..], "<HOST>"),
        (&["127.0.0.1"], "<PORT[:PROTO]>"),
        (&["-x", "127.0.0.1", "1"], "unexpected argument '-x'"),
        (&["-d", "127.0.0.1"], "a whole number of milliseconds"),
        (&["a/b", "1"], "a host is an IP address"),
        (&["-h"], ""),
    ] {
        let outcome = run(&mut knock(&home, args)).expect(1);
        assert!(
            outcome.stdout.contains("Usage: knock [OPTIONS] <HOST> <PORT[:PROTO]>..."),
            "{}",
            outcome.stdout
        );
        let silent = says.is_empty() && outcome.stderr.is_empty();
        let told = outcome.stderr.starts_with("knock: ") && outcome.stderr.contains(says);
        assert!(silent || told, "{args:?}: {}", outcome.stderr);
    }
    for (args, says) in [
        (&["127.0.0.1", &step, "99999"][..], "knock: \"99999\" is no step"),
        (&["127.0.0.1", &step, "22:foo"], "knock: \"22:foo\" is no step"),
        (&["-6", "127.0.0.1", &step], "knock: cannot resolve 127.0.0.1: it has no IPv6 address"),
        (&["-u", "255.255.255.255", "1"], "knock: cannot send to 255.255.255.255:1: Permission denied"),
    ] {
        let outcome = run(&mut knock(&home, args)).expect(1);
        assert!(outcome.stderr.starts_with(says), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
    }
    untouched(&socket);
}
