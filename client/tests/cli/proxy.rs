//! `postern proxy`: what ssh's `ProxyCommand` needs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use crate::gate::{ClosedPort, Gate};
use crate::home::{Home, postern, reader, run, wait};

struct Setup {
    gate: Gate,
    home: Home,
    listener: TcpListener,
    port: String,
}

impl Setup {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Gate::listen(&["127.0.0.1"], 1, port);
        let home = Home::with("bastion", &gate.profile);
        Self { gate, home, listener, port: port.to_string() }
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = self.home.postern(&[&["proxy"], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The far end of the connection, after the knock.
    fn accept(&self) -> TcpStream {
        assert_eq!(self.gate.knock().services(), ["ssh"]);
        let stream = self.listener.accept().unwrap().0;
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream
    }
}

/// Bytes that do not repeat at any power of two.
fn pattern(len: usize, step: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * step + i / 251) % 256).unwrap()).collect()
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_end_of_stdin_leaves_the_other_direction_open() {
    let setup = Setup::new();
    let mut child = setup.start(&["bastion", &setup.port]);
    let mut far = setup.accept();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"a question").unwrap();
    drop(stdin);
    assert_eq!(read_all(&mut far), b"a question");
    assert!(child.try_wait().unwrap().is_none(), "it ended with stdin");
    far.write_all(b"an answer").unwrap();
    drop(far);
    assert_eq!(read_all(child.stdout.as_mut().unwrap()), b"an answer");
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn the_end_of_the_far_side_leaves_the_other_direction_open() {
    let setup = Setup::new();
    let mut child = setup.start(&["bastion", &setup.port]);
    let mut far = setup.accept();
    far.write_all(b"goodbye").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(child.stdout.as_mut().unwrap()), b"goodbye");
    assert!(child.try_wait().unwrap().is_none(), "it ended with the far side");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one more thing").unwrap();
    drop(stdin);
    assert_eq!(read_all(&mut far), b"one more thing");
    assert_eq!(wait(&mut child), 0);
    assert_eq!(read_all(child.stderr.as_mut().unwrap()), b"");
}

/// Carries 24 MiB each way at once; `send` writes all and then ends stdin.
fn exchange(
    setup: &Setup,
    mut child: Child,
    send: impl FnOnce(&[u8]) + Send,
    stdout: impl Read + Send + 'static,
) {
    let (up, down) = (pattern(24 << 20, 7), pattern(24 << 20, 13));
    let (mut far, stdout) = (setup.accept(), reader(stdout));
    let mut far_writer = far.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send(&up));
        let written = scope.spawn(|| far_writer.write_all(&down).unwrap());
        assert!(read_all(&mut far) == up, "what went up is not what arrived");
        written.join().unwrap();
    });
    drop((far, far_writer));
    assert!(stdout.join().unwrap() == down, "what came down is not what was sent");
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn much_is_carried_both_ways_at_once_through_pipes() {
    let setup = Setup::new();
    let mut child = setup.start(&["bastion", &setup.port]);
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let send = move |bytes: &[u8]| stdin.write_all(bytes).unwrap();
    exchange(&setup, child, send, stdout);
}

#[test]
fn much_is_carried_both_ways_at_once_through_a_socket() {
    let setup = Setup::new();
    let (mut near, theirs) = UnixStream::pair().unwrap();
    let mut command = setup.home.postern(&["proxy", "bastion", &setup.port]);
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap())).stdout(OwnedFd::from(theirs));
    let child = command.spawn().unwrap();
    // The child's ends, which the command keeps open.
    drop(command);
    let stdout = near.try_clone().unwrap();
    let send = move |bytes: &[u8]| {
        near.write_all(bytes).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
    };
    exchange(&setup, child, send, stdout);
}

#[test]
fn half_a_line_does_not_wait_for_the_other_half() {
    let setup = Setup::new();
    let mut child = setup.start(&["bastion", &setup.port]);
    let mut far = setup.accept();
    let (stdin, stdout) = (child.stdin.as_mut().unwrap(), child.stdout.as_mut().unwrap());
    for round in 0..100_u8 {
        let mut byte = [0];
        stdin.write_all(&[round]).unwrap();
        far.read_exact(&mut byte).unwrap();
        far.write_all(&byte).unwrap();
        stdout.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
    }
    drop((far, child.stdin.take()));
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn it_ends_when_nobody_reads_what_arrives() {
    let setup = Setup::new();
    let mut child = setup.start(&["bastion", &setup.port]);
    let mut far = setup.accept();
    drop(child.stdout.take());
    // The far end learns of it by a failed write, sooner or later.
    while far.write_all(&[0; 4096]).is_ok() {}
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn a_door_that_opens_late_is_found() {
    let closed = ClosedPort::new();
    let gate = Gate::listen(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("bastion", &gate.profile);
    let mut command = home.postern(&["proxy", "bastion", &closed.number().to_string()]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    gate.knock();
    drop(closed.open().accept().unwrap());
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn the_host_tells_the_gate() {
    let setup = Setup::new();
    let line = setup.gate.profile.to_line();
    let port = setup.port.as_str();
    for args in [
        &["bastion", port][..],
        &["127.0.0.1", port],
        &["anything.example.org", port, "--gate", "bastion"],
        &["anything.example.org", port, "--gate", "-"],
    ] {
        let mut command = setup.home.postern(&[&["proxy"], args].concat());
        let mut child = command.env("POSTERN_PROFILE", &*line).stdin(Stdio::null()).spawn().unwrap();
        drop(setup.accept());
        assert_eq!(wait(&mut child), 0, "{args:?}");
    }
    // Without a home, too.
    let mut command = postern(&["proxy", "bastion", port, "--gate", "-"]);
    let mut child = command.env("POSTERN_PROFILE", &*line).stdin(Stdio::null()).spawn().unwrap();
    drop(setup.accept());
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn no_connection_in_time_has_its_own_exit_code() {
    let closed = ClosedPort::new();
    let gate = Gate::listen(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("bastion", &gate.profile);
    let outcome =
        run(&mut home.postern(&["proxy", "bastion", &closed.number().to_string(), "--timeout", "0.3"]))
            .expect(5);
    gate.knock();
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    let says =
        format!("postern: waited 0.3 s in vain: no connection to bastion at port {} (", closed.number());
    assert!(outcome.stderr.starts_with(&says), "{}", outcome.stderr);
}

#[test]
fn a_proxy_knocks_again_until_it_is_connected() {
    let closed = ClosedPort::new();
    let gate = Gate::listen(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("bastion", &gate.profile);
    let args = ["proxy", "bastion", &closed.number().to_string(), "--timeout", "1", "--repeat", "3"];
    run(&mut home.postern(&args)).expect(5);
    let (first, second, third) = (gate.knock(), gate.knock(), gate.knock());
    gate.assert_no_more();
    assert!(first.bytes != second.bytes && second.bytes != third.bytes);
}
