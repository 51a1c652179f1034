//! Links between two ends in one process.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;

use serde::Deserialize;
use tokio::task::yield_now;

use super::*;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Text(String);

impl Message for Text {
    const MAX: usize = 1024 * 1024;
}

/// What a message is that descriptors may come with.
#[derive(Serialize, Deserialize)]
struct Start(Text);

impl Message for Start {
    const MAX: usize = Text::MAX;
    const HAS_DESCRIPTORS: bool = true;
}

fn ends() -> (Sender<Text>, Receiver<Text>) {
    let (a, b) = pair().unwrap();
    (Sender::new(a), Receiver::new(b).unwrap())
}

#[tokio::test(flavor = "current_thread")]
async fn messages_of_every_length_arrive_whole_and_in_order() {
    let (sender, mut receiver) = ends();
    let texts = [0, 1, 32 * 1024 - 4, 32 * 1024, 1000 * 1000].map(|len| Text("x".repeat(len)));
    let sending = async {
        for text in &texts {
            sender.send(text).await.unwrap();
        }
    };
    let receiving = async {
        for text in &texts {
            assert_eq!(receiver.receive().await.unwrap().as_ref(), Some(text));
        }
    };
    tokio::join!(sending, receiving);
    assert_eq!(receiver.receive_now().unwrap(), None);
    drop(sender);
    assert_eq!(receiver.receive().await.unwrap(), None);
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_too_long_is_not_sent_and_not_taken() {
    let (sender, mut receiver) = ends();
    let error = sender.send(&Text("x".repeat(Text::MAX))).await.unwrap_err();
    assert!(error.to_string().contains("longer"), "{error}");

    let part = [&[VERSION, 1][..], &vec![b'x'; 32 * 1024]].concat();
    for _ in 0..=Text::MAX / (32 * 1024) {
        send_packet(sender.socket.as_fd(), &part, &[]).unwrap();
        if receiver.receive_now().is_err() {
            sender.send(&Text("next".to_owned())).await.unwrap();
            assert_eq!(receiver.receive().await.unwrap(), Some(Text("next".to_owned())));
            return;
        }
    }
    panic!("a message without end was taken");
}

#[tokio::test(flavor = "current_thread")]
async fn junk_is_an_error_and_the_next_message_is_read() {
    let (sender, mut receiver) = ends();
    for junk in [
        &[][..],
        &[VERSION],
        &[VERSION + 1, 0, 0],
        &[VERSION, 2, 0],
        &[VERSION, 0],
        &[VERSION, 0, 9, b'x'],
        &[VERSION, 0, 0, 0],
    ] {
        send(&sender.socket, junk, SendFlags::empty()).unwrap();
        let error = receiver.receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{junk:?}");
    }
    let file = tempfile::tempfile().unwrap();
    sender.send_with(&Text(String::new()), &[file.as_fd()]).await.unwrap();
    assert!(receiver.receive().await.is_err(), "no descriptors come with this message");
    sender.send(&Text("next".to_owned())).await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), Some(Text("next".to_owned())));
}

#[tokio::test(flavor = "current_thread")]
async fn an_end_that_is_closed_with_something_unread_is_no_error() {
    let (a, b) = pair().unwrap();
    let (a, mut b, back) = (Sender::new(a), Receiver::<Text>::new(b.try_clone().unwrap()).unwrap(), b);
    a.send(&Text("last".to_owned())).await.unwrap();
    send(&back, b"unread", SendFlags::empty()).unwrap();
    drop(a);
    assert_eq!(b.receive().await.unwrap(), Some(Text("last".to_owned())));
    assert_eq!(b.receive().await.unwrap(), None);
}

#[tokio::test(flavor = "current_thread")]
async fn who_sends_without_end_leaves_others_their_turn() {
    let (sender, mut receiver) = ends();
    let turns = Cell::new(0);
    let flood = async {
        for _ in 0..10_000 {
            // The junk is there before it is looked for: receiving never has to wait.
            send(&sender.socket, &[VERSION + 1], SendFlags::empty()).unwrap();
            receiver.receive().await.unwrap_err();
        }
    };
    let other = async {
        while turns.get() < 10 {
            yield_now().await;
            turns.set(turns.get() + 1);
        }
    };
    tokio::select! { biased; () = flood => {}, () = other => {} }
    assert_eq!(turns.get(), 10);
}

#[tokio::test(flavor = "current_thread")]
async fn the_first_message_brings_descriptors() {
    let (a, b) = pair().unwrap();
    let (mut file, path) = tempfile::NamedTempFile::new().unwrap().into_parts();
    let sender = Sender::new(a);
    sender.send_with(&Start(Text("y".repeat(100_000))), &[file.as_fd()]).await.unwrap();
    let (Start(text), descriptors) = receive_first(b.as_fd()).unwrap();
    assert_eq!(text.0.len(), 100_000);
    let mut same = File::from(descriptors.into_iter().next().unwrap());
    same.write_all(b"here").unwrap();
    file.flush().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"here");
}
