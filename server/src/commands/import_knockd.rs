//! `posternd import-knockd FILE`: a knockd.conf in posternd.toml's own terms, and what changes in meaning.

use std::path::Path;

use super::print::{say, whole};
use crate::config::read_knockd;

pub(crate) fn run(file: &Path) -> anyhow::Result<()> {
    let conf = read_knockd(file)?;
    for remark in conf.remarks() {
        say!("# {remark}")?;
    }
    say!("")?;
    whole(|out| out.write_all(conf.to_toml().as_bytes()))
}
