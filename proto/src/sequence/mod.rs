//! Classic port sequences: for clients that can only touch ports, in an order that they know.

pub mod steps;

pub use steps::{Steps, StepsError};
