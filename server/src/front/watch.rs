//! The watch: the thread of the front that reads strangers' packets, and goes with each of them all the way.
//!
//! ```text
//!  ┌▶ poll ─▶ captures ─frames▶ desk ─decisions▶ recorder (one commit for all that came) ─orders▶ warden
//!  └────────── rest ◀──────────────── tend (hints, what can be forgotten, what was counted)
//! ```
//! One thread for all of it: to wake another one on the way costs a knock more than most of the steps do. So nobody reads
//! while a commit waits for the disk, or orders for a warden that has more to do than its link holds. Packets wait in the
//! captures' rings meanwhile; where the kernel looks hints up, no strangers' junk is among them.

use std::io;
use std::mem::take;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::bell::Bell;
use super::capture::{BATCH, Capture};
use super::desk::Desk;
use super::process::{Event, Newcomers};
use super::pulse::Pulse;
use super::recorder::Recorder;
use super::sequences::Spent;
use crate::alarm::Timer;
use crate::clock::{BootTime, Now};
use crate::order::Note;

/// How often it goes on with the next epoch's hints, and with forgetting, while there is more to do.
const SLICE_PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked for knocks that may be forgotten, and the warden told though nobody came.
const TICK: Duration = Duration::from_secs(5);
/// How often a part of those is forgotten who did not go on with a sequence.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How soon the warden knows what was counted, and the tables of the store hold what was recorded.
const NOTE_PAUSE: Duration = Duration::from_millis(500);
/// Packets are left to gather for so long behind those that came last: to be woken costs more than to refuse many.
const REST: Duration = Duration::from_millis(2);

/// What the watch is told while it runs.
pub(super) enum Told {
    /// The guard stands: packets may be read.
    Begin,
    /// Others may knock from now on. The answer goes back.
    Reload(Box<Newcomers>, oneshot::Sender<Result<(), String>>),
    /// Whether a one-time sequence is noted as used.
    Noted(Spent, bool),
}

/// All that the front works with.
pub(super) struct Watch {
    captures: Vec<Watched>,
    desk: Desk,
    recorder: Recorder,
    bell: Bell<Told>,
    /// To the supervisor.
    events: mpsc::UnboundedSender<Event>,
    /// Whether it was told to begin.
    has_begun: bool,
    pulse: Pulse,
    timer: Timer,
    /// What the timer is set to.
    due: BootTime,
    last_tick: BootTime,
}

struct Watched {
    capture: Capture,
    /// Packets that it dropped, as far as they are counted.
    dropped: u32,
}

impl Watch {
    /// # Errors
    /// When the system has no timer left.
    pub(super) fn new(
        captures: Vec<Capture>,
        desk: Desk,
        recorder: Recorder,
        bell: Bell<Told>,
        events: mpsc::UnboundedSender<Event>,
        pulse: Pulse,
    ) -> io::Result<Self> {
        let captures = captures.into_iter().map(|capture| Watched { capture, dropped: 0 }).collect();
        let now = Now::read().boot;
        pulse.beat(now);
        let timer = Timer::new()?;
        let (has_begun, due, last_tick) = (false, now, now);
        Ok(Self { captures, desk, recorder, bell, events, has_begun, pulse, timer, due, last_tick })
    }

    /// Works from when it is told to begin until nothing more is told. Says in the log what was counted.
    ///
    /// # Errors
    /// When it cannot go on.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let result = if self.begins()? { self.work() } else { Ok(()) };
        self.count_dropped();
        self.desk.counted().log();
        self.pulse.pause();
        self.recorder.close();
        result
    }

    /// Waits for the word to begin, and does what it is told with it; `false` where that never comes.
    fn begins(&mut self) -> anyhow::Result<bool> {
        // Nothing is to be done, and so nothing can be stuck.
        self.pulse.pause();
        let mut goes_on = true;
        while goes_on && !self.has_begun {
            retry_on_intr(|| poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], None))?;
            goes_on = self.hear();
        }
        Ok(goes_on)
    }

    fn work(&mut self) -> anyhow::Result<()> {
        self.tend()?;
        let mut is_over = false;
        loop {
            let ready = self.wait().context("cannot wait for packets")?;
            self.pulse.beat(Now::read().boot);
            let [rung, timed, captures @ ..] = ready.as_slice() else { unreachable!("they were asked for") };
            let (rung, timed) = (!rung.is_empty(), !timed.is_empty());
            is_over |= rung && !self.hear();
            let watched = self.captures.len();
            let read = if self.recorder.has_waiting() {
                self.recorder.hand_over()?;
                Ok(0)
            } else {
                self.read(captures)
            };
            // What was decided before something failed is recorded all the same.
            self.record()?;
            let read = read?;
            if is_over && !self.recorder.has_waiting() {
                return Ok(());
            }
            if timed {
                self.tend()?;
            }
            if read > 0 || rung || self.captures.len() != watched {
                self.tend_by(Now::read().boot.after(NOTE_PAUSE))?;
            }
            // A full batch has left some: there is no time to rest.
            if (1..BATCH).contains(&read) {
                thread::sleep(REST);
            }
        }
    }

    /// Waits for something to do: what the bell, the timer and each capture have, in this order. While orders wait for the
    /// link, that has the captures' place.
    fn wait(&self) -> io::Result<Vec<PollFlags>> {
        let mut descriptors =
            vec![PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        let link = self.recorder.link();
        if self.recorder.has_waiting() {
            descriptors.push(PollFd::new(&link, PollFlags::OUT));
        } else {
            let captures = self.captures.iter().map(|watched| &watched.capture);
            descriptors.extend(captures.map(|capture| PollFd::new(capture, PollFlags::IN)));
        }
        retry_on_intr(|| poll(&mut descriptors, None))?;
        Ok(descriptors.iter().map(PollFd::revents).collect())
    }

    /// Does what it was told; whether it may be told more.
    fn hear(&mut self) -> bool {
        let (heard, goes_on) = self.bell.heard();
        for told in heard {
            match told {
                Told::Begin => self.has_begun = true,
                Told::Reload(newcomers, answer) => {
                    // Who asked and is gone needs no answer.
                    let _ = answer.send(self.desk.reload(*newcomers));
                }
                Told::Noted(spent, is_done) => self.desk.noted(&spent, is_done),
            }
        }
        goes_on
    }

    /// Takes the packets that have come in to whom they concern; gives how many came from where most did. An interface that
    /// went down or away is not watched any more.
    fn read(&mut self, ready: &[PollFlags]) -> anyhow::Result<usize> {
        if ready.iter().any(|ready| ready.contains(PollFlags::ERR)) {
            // Of one that goes away, nothing can be asked any more.
            self.count_dropped();
        }
        let Self { captures, desk, events, .. } = self;
        let (mut most, mut failed) = (0, None);
        let mut ready = ready.iter();
        captures.retain_mut(|Watched { capture, .. }| {
            let ready = ready.next().copied().unwrap_or(PollFlags::empty());
            if ready.is_empty() {
                return true;
            }
            let read = capture.read(ready, |frame| desk.take(&frame));
            desk.settle_gathered();
            match read {
                Ok(read) => most = most.max(read),
                Err(error) if error.may_pass() => {
                    let interface = capture.interface().to_owned();
                    warn!(interface, "not watched until it is back: {error}");
                    // The other end lives as long as the front.
                    let _ = events.send(Event::Unwatched(interface));
                    return false;
                }
                Err(error) => failed = Some(error),
            }
            true
        });
        failed.map_or(Ok(most), |error| Err(error.into()))
    }

    /// Has what was decided take its effect.
    fn record(&mut self) -> anyhow::Result<()> {
        if self.desk.decided.is_empty() || self.recorder.has_waiting() {
            return Ok(());
        }
        let batch = take(&mut self.desk.decided);
        let recorded = self.at_the_disk(|recorder| recorder.record(batch))?;
        self.desk.conclude(recorded);
        self.recorder.check_reach()
    }

    /// Keeps the next epoch's hints coming, here and in the kernel, has forgotten what can be, has the store's tables take its
    /// journal over, and has the warden know how the front does, and the supervisor who knocked: soon after something was counted, and now and then, for what
    /// only the kernel counts and for a new warden. All at one time: each timer of its own would wake an idle host.
    fn tend(&mut self) -> anyhow::Result<()> {
        let now = Now::read();
        let is_complete = self.desk.prepare(now.wall);
        self.desk.sequences.sweep(now);
        let forgets = now.boot.since(self.last_tick) >= TICK;
        let forgets_more = forgets && self.forget(now);
        if forgets && !forgets_more {
            self.last_tick = now.boot;
        }
        self.at_the_disk(Recorder::settle);
        self.recorder.check_reach()?;
        self.count_dropped();
        let interfaces = self.captures.iter().map(|watched| watched.capture.interface().to_owned()).collect();
        self.recorder.note(Note { counters: self.desk.counted(), interfaces })?;
        let used = self.desk.newly_used();
        if !used.is_empty() {
            // The other end lives as long as the front.
            let _ = self.events.send(Event::Used(used));
        }
        let pause = match (is_complete && !forgets_more, self.desk.sequences.is_empty()) {
            (false, _) => SLICE_PAUSE,
            (true, false) => SWEEP_PAUSE,
            (true, true) => TICK,
        };
        self.due = now.boot.after(pause);
        Ok(self.timer.set(self.due)?)
    }

    fn tend_by(&mut self, at: BootTime) -> io::Result<()> {
        if at < self.due {
            self.due = at;
            self.timer.set(at)?;
        }
        Ok(())
    }

    /// Forgets a slice of what may be forgotten; whether there may be more.
    fn forget(&mut self, now: Now) -> bool {
        let Some(purge) = self.desk.gate.purgeable(now) else { return false };
        let is_done = self.at_the_disk(|recorder| recorder.forget(&purge));
        if is_done {
            self.desk.gate.forget(&purge);
        }
        is_done
    }

    /// Whoever waits for a disk is not stuck.
    fn at_the_disk<T>(&mut self, work: impl FnOnce(&mut Recorder) -> T) -> T {
        self.pulse.pause();
        let done = work(&mut self.recorder);
        self.pulse.beat(Now::read().boot);
        done
    }

    fn count_dropped(&mut self) {
        for Watched { capture, dropped } in &mut self.captures {
            // An interface that is gone says so when it is read.
            let Ok(stats) = capture.stats() else { continue };
            self.desk.counters.dropped += u64::from(stats.dropped.wrapping_sub(*dropped));
            *dropped = stats.dropped;
        }
    }
}
