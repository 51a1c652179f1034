//! `posternd import-knockd FILE`: a knockd.conf in posternd.toml's own terms, and what changes in meaning.

use std::path::Path;

use crate::config::read_knockd;

pub(crate) fn run(file: &Path) -> anyhow::Result<()> {
    let conf = read_knockd(file)?;
    for remark in conf.remarks() {
        println!("# {remark}");
    }
    println!();
    print!("{}", conf.to_toml());
    Ok(())
}
