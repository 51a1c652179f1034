//! A process that was taken over: it is stopped and made to make system calls of a test's choice, as an attacker would who
//! runs code in it. What holds it back then is the kernel, and nothing of its own. And a thread that is stuck, while the
//! others of its process go on.
//!
//! By ptrace, and not by a debugger: one that is older than the processor cannot write all of its registers back. For
//! x86-64, whose calls these are.

use std::fmt::Display;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::Pid;

/// Where what the calls point to lies in the process: far from where the kernel puts anything by itself.
const MEMORY: i64 = 0x2000_0000_0000;
const MEMORY_LEN: usize = 64 * 1024;
/// The instruction that makes a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// System calls for a process to make, in order.
#[derive(Default)]
pub struct Calls {
    memory: Vec<u8>,
    calls: Vec<(c_long, Vec<Value>)>,
}

/// What a call returns; stands for it in the arguments of later ones.
#[derive(Clone, Copy, Debug)]
pub struct Returned(usize);

/// An argument of a call: a number, or what an earlier call returned.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A number, an address, a descriptor.
    Number(i64),
    /// What came of an earlier call.
    Of(Returned),
    /// The number of 32 bits that an earlier call left at this address.
    At(i64),
}

/// What can be an argument of a call.
pub trait Argument {
    /// As it goes into a register.
    fn value(&self) -> Value;
}

impl Argument for Value {
    fn value(&self) -> Value {
        *self
    }
}

impl Argument for Returned {
    fn value(&self) -> Value {
        Value::Of(*self)
    }
}

macro_rules! arguments {
    ($($number:ty)*) => {
        $(impl Argument for $number {
            fn value(&self) -> Value {
                Value::Number(i64::from(*self))
            }
        })*
    };
}

arguments!(i32 u32 i64);

impl Argument for u64 {
    fn value(&self) -> Value {
        Value::Number(self.cast_signed())
    }
}

impl Argument for usize {
    fn value(&self) -> Value {
        (*self as u64).value()
    }
}

/// What the calls came back with: a result, or an error number.
pub struct Answers(Vec<Result<i64, i32>>);

impl Answers {
    /// That of one call.
    ///
    /// # Errors
    /// The error number.
    pub fn of(&self, call: Returned) -> Result<i64, i32> {
        self.0[call.0]
    }
}

impl Calls {
    /// Puts bytes into the process's memory; gives their address.
    pub fn bytes(&mut self, bytes: &[u8]) -> i64 {
        let at = self.memory.len().next_multiple_of(16);
        self.memory.resize(at, 0);
        self.memory.extend_from_slice(bytes);
        MEMORY + i64::try_from(at).expect("a few bytes")
    }

    /// Puts a text and a zero behind it into the process's memory; gives its address.
    pub fn text(&mut self, text: impl Display) -> i64 {
        self.bytes(format!("{text}\0").as_bytes())
    }

    /// Puts numbers of 64 bits into the process's memory; gives their address.
    pub fn words(&mut self, words: &[i64]) -> i64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// One more call, with up to six arguments.
    ///
    /// # Panics
    /// When there are more.
    pub fn call(&mut self, number: c_long, arguments: &[&dyn Argument]) -> Returned {
        assert!(arguments.len() <= 6, "a system call has six arguments");
        self.calls.push((number, arguments.iter().map(|argument| argument.value()).collect()));
        Returned(self.calls.len() - 1)
    }

    /// Has the first thread of a process make the calls. It stands still meanwhile, and goes on afterwards.
    ///
    /// # Errors
    /// When it cannot be taken over, or it does not come to the end of the calls.
    pub fn make(&self, pid: Pid) -> Result<Answers> {
        ensure!(self.memory.len() <= MEMORY_LEN, "too much for the memory of the process");
        let taken = Taken::over(pid)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let len = i64::try_from(MEMORY_LEN)?;
        let mapped = taken.call(libc::SYS_mmap, &[MEMORY, len, protection.into(), flags.into(), -1, 0])?;
        ensure!(mapped == Ok(MEMORY), "the process has no memory for the calls: {mapped:?}");
        let memory =
            File::options().read(true).write(true).open(format!("/proc/{}/mem", pid.as_raw_nonzero()))?;
        memory.write_all_at(&self.memory, MEMORY.cast_unsigned())?;

        let mut answers = Vec::new();
        for (number, arguments) in &self.calls {
            let arguments =
                arguments.iter().map(|value| value.read(&answers, &memory)).collect::<Result<Vec<_>>>()?;
            let answer = taken.call(*number, &arguments)?;
            if *number == libc::SYS_execve && answer.is_ok() {
                taken.leave()?;
                bail!("the process is another program now");
            }
            answers.push(answer);
        }
        taken.call(libc::SYS_munmap, &[MEMORY, len])?.map_err(io::Error::from_raw_os_error)?;
        taken.give_back()?;
        Ok(Answers(answers))
    }
}

impl Value {
    /// What a failed call returned is -1, as the C library has it.
    fn read(self, answers: &[Result<i64, i32>], memory: &File) -> Result<i64> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Of(Returned(call)) => Ok(answers[call].unwrap_or(-1)),
            Self::At(address) => {
                let mut bytes = [0; 4];
                memory.read_exact_at(&mut bytes, address.cast_unsigned())?;
                Ok(i32::from_ne_bytes(bytes).into())
            }
        }
    }
}

/// A process whose first thread stands still, in this thread's hand.
struct Taken {
    thread: nix::unistd::Pid,
    /// As they were when it was stopped.
    registers: user_regs_struct,
    /// Where in the process there is an instruction that makes a system call.
    syscall: u64,
}

impl Taken {
    fn over(pid: Pid) -> Result<Self> {
        let syscall = find_syscall(pid)?;
        let thread = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
        ptrace::seize(thread, ptrace::Options::empty()).context("the process cannot be traced")?;
        ptrace::interrupt(thread)?;
        waitpid(thread, Some(WaitPidFlag::__WALL))?;
        Ok(Self { thread, registers: ptrace::getregs(thread)?, syscall })
    }

    /// Has it make a call: what it returns, or the number of its error.
    fn call(&self, number: c_long, arguments: &[i64]) -> Result<Result<i64, i32>> {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or(0).cast_unsigned();
        let registers = user_regs_struct {
            rax: number.cast_unsigned(),
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            rip: self.syscall,
            // It is in no call that the kernel would begin anew.
            orig_rax: u64::MAX,
            ..self.registers
        };
        ptrace::setregs(self.thread, registers)?;
        ptrace::step(self.thread, None)?;
        let stopped = waitpid(self.thread, Some(WaitPidFlag::__WALL))?;
        ensure!(
            matches!(stopped, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "call {number} came to an early end: {stopped:?}"
        );
        let result = ptrace::getregs(self.thread)?.rax.cast_signed();
        // The kernel's way to tell an error from a result.
        Ok(if (-4095..0).contains(&result) { Err(i32::try_from(-result)?) } else { Ok(result) })
    }

    /// It goes on where it was stopped.
    fn give_back(self) -> Result<()> {
        ptrace::setregs(self.thread, self.registers)?;
        self.leave()
    }

    fn leave(self) -> Result<()> {
        Ok(ptrace::detach(self.thread, None)?)
    }
}

/// The address of an instruction of a process that makes a system call: the C library is full of them.
fn find_syscall(pid: Pid) -> Result<u64> {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let memory = File::open(format!("{process}/mem"))?;
    let maps = fs::read_to_string(format!("{process}/maps"))?;
    let code = maps.lines().filter(|line| line.contains(" r-xp ") && line.contains("libc"));
    for line in code {
        let (range, _) = line.split_once(' ').context("a range")?;
        let (begin, end) = range.split_once('-').context("a range")?;
        let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
        let mut text = vec![0; usize::try_from(end - begin)?];
        memory.read_exact_at(&mut text, begin)?;
        if let Some(at) = text.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL) {
            return Ok(begin + u64::try_from(at)?);
        }
    }
    bail!("no C library in the process")
}

/// Stops the thread of this name until its process ends, while the others go on.
///
/// # Errors
/// When there is none, or it cannot be stopped.
pub fn stop_thread(pid: Pid, name: &str) -> Result<()> {
    let is_it = |task: &DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let mut tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))?.flatten();
    let task = tasks.find(is_it).with_context(|| format!("no thread {name}"))?.file_name();
    let thread = nix::unistd::Pid::from_raw(task.to_str().context("a number")?.parse()?);
    let (tell, stopped) = mpsc::channel();
    // Of threads, too, only the one that traces another is told of it.
    thread::spawn(move || {
        let stop = || {
            ptrace::seize(thread, ptrace::Options::empty())?;
            ptrace::interrupt(thread)?;
            waitpid(thread, Some(WaitPidFlag::__WALL)).map(drop)
        };
        // Whoever is told waits for it.
        let _ = tell.send(stop());
        // Its process is gone only once its end was seen here.
        while waitpid(thread, Some(WaitPidFlag::__WALL))
            .is_ok_and(|status| !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
        {
        }
    });
    stopped.recv()?.with_context(|| format!("the thread {name} cannot be stopped"))
}
