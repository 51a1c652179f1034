//! posternd, fwknopd and knockd side by side on one machine, in turns; `bash tests/bench` runs it.
//!
//! Each contender runs in a network namespace at one end of a cable, whoever knocks and floods at the other. Nothing leaves
//! those two, and all of it ends with this program.
//!
//! ```text
//! arguments ─▶ measure (one file each) ─▶ report
//!                 │ scene: contenders ═ cable ═ prober, flood; meter
//! ```

#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result};
use postern_tests::programs;

mod arguments;
mod commit;
mod contenders;
mod flood;
mod forks;
mod measure;
mod meter;
mod prober;
mod processors;
mod report;
mod scene;
mod wire;

use arguments::Arguments;
use report::Report;
use report::machine::Machine;

fn main() -> Result<()> {
    let Arguments { measurements, plan, json } = Arguments::parse(std::env::args().skip(1))?;
    let folder = programs::directory()?;
    let mut report = Report { machine: Machine::read()?, sections: Vec::new() };
    println!("{}", report.machine);
    for measure in measurements {
        let section = measure(&plan);
        println!("{section}");
        report.sections.push(section);
        // What is there is there, whatever becomes of the rest.
        let json = json.clone().unwrap_or_else(|| folder.join("bench.json"));
        fs::write(&json, serde_json::to_vec_pretty(&report)?).with_context(|| json.display().to_string())?;
    }
    Ok(())
}
