//! Sequences without a daemon: the ruleset of the wiki page as it is printed there, and what `posternd rules recent`
//! prints, in real kernels, side by side.

mod limits;
mod open;
mod scene;
mod table;
mod usage;
mod weaknesses;
