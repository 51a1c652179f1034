//! An assembler for eBPF: typed instructions, and labels that may be jumped to before they are placed.
//!
//! Only what the filter is made of. The encodings are those of RFC 9669.

use std::os::fd::{AsRawFd, RawFd};

use crate::system::bpf::Instruction;

/// A register. R0 is what a call or the program gives back, R1 to R5 are a call's arguments and lost in it, R6 to R9 stay,
/// R10 is the end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// What an operation is done with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Register(Register),
    Number(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// What is done with 64 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When a jump is taken; without signs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    /// A bit is in both.
    Shares = 0x40,
    Different = 0x50,
    Less = 0xa0,
}

/// How much is loaded or stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// Functions of the kernel (`enum bpf_func_id` in `linux/bpf.h`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Helper {
    MapLookup = 1,
    LoadBytes = 26,
    /// International atomic time: the wall clock without leap seconds. Linux has it since 6.1.
    Tai = 208,
}

/// A place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

// Classes of instructions, and how they are modified.
const LOAD: u8 = 0x00;
const LOAD_FROM: u8 = 0x01;
const STORE_NUMBER: u8 = 0x02;
const STORE: u8 = 0x03;
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;
const ALU_64: u8 = 0x07;
const BY_REGISTER: u8 = 0x08;
const PACKET_AT: u8 = 0x40;
const MEMORY: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const CONSTANT: u8 = 0x18;
const TO_LITTLE_ENDIAN: u8 = 0xd4;
/// A constant that is the descriptor of a map.
const MAP: u8 = 1;

/// A program that is being written.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps that lead to a label.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A place that is still to be found.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Here it is.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// `to = to operation by`
    pub(super) fn compute(&mut self, operation: Operation, to: Register, by: impl Into<Operand>) {
        let (modifier, source, number) = parts(by.into());
        self.push(ALU_64 | operation as u8 | modifier, to as u8, source, 0, number);
    }

    /// Jumps if it holds for 64 bits.
    pub(super) fn jump_if(&mut self, one: Register, is: Condition, other: impl Into<Operand>, to: Label) {
        self.branch(JUMP, one, is, other.into(), to);
    }

    /// Jumps if it holds for the low 32 bits.
    pub(super) fn jump_if_word(
        &mut self,
        one: Register,
        is: Condition,
        other: impl Into<Operand>,
        to: Label,
    ) {
        self.branch(JUMP_32, one, is, other.into(), to);
    }

    /// Jumps.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JUMP, 0, 0, 0, 0);
    }

    fn branch(&mut self, class: u8, one: Register, is: Condition, other: Operand, to: Label) {
        let (modifier, source, number) = parts(other);
        self.jumps.push((self.instructions.len(), to));
        self.push(class | is as u8 | modifier, one as u8, source, 0, number);
    }

    /// `to = memory[base + offset]`
    pub(super) fn load(&mut self, size: Size, to: Register, base: Register, offset: i16) {
        self.push(LOAD_FROM | MEMORY | size as u8, to as u8, base as u8, offset, 0);
    }

    /// `memory[base + offset] = from`
    pub(super) fn store(&mut self, size: Size, base: Register, offset: i16, from: impl Into<Operand>) {
        match from.into() {
            Operand::Register(from) => {
                self.push(STORE | MEMORY | size as u8, base as u8, from as u8, offset, 0);
            }
            Operand::Number(number) => {
                self.push(STORE_NUMBER | MEMORY | size as u8, base as u8, 0, offset, number);
            }
        }
    }

    /// `memory[base] += from`, whoever else adds to it.
    pub(super) fn add_atomically(&mut self, base: Register, from: Register) {
        self.push(STORE | ATOMIC | Size::Double as u8, base as u8, from as u8, 0, 0);
    }

    /// `R0 = packet[at + offset]`, from the network's byte order. The packet must be in R6; where it is shorter the program
    /// ends, with 0. R1 to R5 are lost.
    pub(super) fn load_packet(&mut self, size: Size, at: Register, offset: i32) {
        self.push(LOAD | PACKET_AT | size as u8, 0, at as u8, 0, offset);
    }

    /// `to = constant`
    pub(super) fn constant(&mut self, to: Register, constant: u64) {
        let (low, high) = halves(constant);
        self.push(CONSTANT, to as u8, 0, 0, low);
        self.push(0, 0, 0, 0, high);
    }

    /// `to` is a map.
    pub(super) fn map(&mut self, to: Register, map: &impl AsRawFd) {
        let descriptor: RawFd = map.as_raw_fd();
        self.push(CONSTANT, to as u8, MAP, 0, descriptor);
        self.push(0, 0, 0, 0, 0);
    }

    /// `R0 = helper(R1, ...)`
    pub(super) fn call(&mut self, helper: Helper) {
        self.push(CALL, 0, 0, 0, helper as i32);
    }

    /// From the machine's byte order to little-endian, and back.
    pub(super) fn little_endian(&mut self, register: Register) {
        self.push(TO_LITTLE_ENDIAN, register as u8, 0, 0, 64);
    }

    /// Ends the program, with R0.
    pub(super) fn exit(&mut self) {
        self.push(EXIT, 0, 0, 0, 0);
    }

    /// The program, with every jump leading where it should.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.labels[label.0].expect("every label that is jumped to is placed");
            // It counts from the instruction behind the jump.
            let offset = i16::try_from(place.wrapping_sub(at + 1).cast_signed());
            let offset = offset.expect("a program is shorter than a jump is far");
            self.instructions[at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        self.instructions
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, number: i32) {
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        let [o0, o1] = offset.to_ne_bytes();
        let [n0, n1, n2, n3] = number.to_ne_bytes();
        self.instructions.push([code, registers, o0, o1, n0, n1, n2, n3]);
    }
}

fn parts(operand: Operand) -> (u8, u8, i32) {
    match operand {
        Operand::Register(register) => (BY_REGISTER, register as u8, 0),
        Operand::Number(number) => (0, 0, number),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "each half is taken")]
const fn halves(constant: u64) -> (i32, i32) {
    ((constant as u32).cast_signed(), ((constant >> 32) as u32).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        use Register::{R0, R1, R2, R6, R7, R10};
        let mut assembler = Assembler::default();
        assembler.compute(Operation::Move, R1, R2);
        assembler.compute(Operation::Add, R7, -2);
        assembler.load(Size::Word, R0, R6, 4);
        assembler.store(Size::Double, R10, -8, R0);
        assembler.store(Size::Word, R10, -12, 1);
        assembler.add_atomically(R0, R1);
        assembler.load_packet(Size::Half, R7, 2);
        assembler.constant(R0, 0x1122_3344_5566_7788);
        assembler.map(R1, &9);
        assembler.call(Helper::MapLookup);
        assembler.little_endian(R0);
        assembler.exit();
        let wanted: [Instruction; 14] = [
            [0xbf, 0x21, 0, 0, 0, 0, 0, 0],
            [0x07, 0x07, 0, 0, 0xfe, 0xff, 0xff, 0xff],
            [0x61, 0x60, 4, 0, 0, 0, 0, 0],
            [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x62, 0x0a, 0xf4, 0xff, 1, 0, 0, 0],
            [0xdb, 0x10, 0, 0, 0, 0, 0, 0],
            [0x48, 0x70, 0, 0, 2, 0, 0, 0],
            [0x18, 0x00, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0x00, 0x00, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x18, 0x11, 0, 0, 9, 0, 0, 0],
            [0x00, 0x00, 0, 0, 0, 0, 0, 0],
            [0x85, 0x00, 0, 0, 1, 0, 0, 0],
            [0xd4, 0x00, 0, 0, 64, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(assembler.finish(), wanted);
    }

    #[test]
    fn jumps_lead_forward_and_back() {
        let mut assembler = Assembler::default();
        let (start, end) = (assembler.label(), assembler.label());
        assembler.place(start);
        assembler.jump_if(Register::R0, Condition::Equal, 0, end);
        assembler.jump_if_word(Register::R0, Condition::Less, Register::R1, end);
        assembler.jump(start);
        assembler.place(end);
        assembler.exit();
        let offsets: Vec<_> =
            assembler.finish().iter().map(|code| (code[0], i16::from_ne_bytes([code[2], code[3]]))).collect();
        assert_eq!(offsets, [(0x15, 2), (0xae, 1), (0x05, -3), (0x95, 0)]);
    }
}
