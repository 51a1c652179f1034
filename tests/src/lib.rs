//! End-to-end tests of Postern.
