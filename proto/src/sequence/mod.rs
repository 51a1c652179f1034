//! Classic port sequences: for clients that can only touch ports, in an order that they know.
//!
//! ```text
//!  packet ──▶ Matcher::advance ──▶ the doors that it opens ──▶ policy, ledger, firewall, as for a knock
//!             (doors, table of attempts)
//! ```
//!
//! What a [`Door`] is stands in [`door`], what becomes of one source's attempt at it in `attempt`, and where the
//! attempts of all sources are kept, within bounds, in `table`. [`rolling`] sequences change with the epoch.

mod attempt;
pub mod door;
pub mod flags;
mod keyed;
pub mod matcher;
pub mod packet;
pub mod range;
pub mod rolling;
pub mod steps;
mod table;

pub use door::{Door, Sequence, Strays};
pub use flags::{FlagsError, TcpFlags};
pub use matcher::{Completed, Matcher, MatcherError};
pub use packet::{Now, Packet, Tcp};
pub use range::{PortRange, RangeError};
pub use rolling::{Rolling, RollingError, Use};
pub use steps::{Steps, StepsError};
