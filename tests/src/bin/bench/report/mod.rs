//! What was measured: one table with a section for each measurement, and the same as JSON.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use serde::Serialize;

pub(crate) mod machine;
pub(crate) mod stats;

use machine::Machine;
use stats::median;

/// All of it.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) sections: Vec<Section>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// What the figures are, with their units.
    pub(crate) figures: &'static [&'static str],
    /// Whether the first of them is compared with that of the first contender under the same condition.
    pub(crate) compares: bool,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

/// One contender under one condition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) condition: String,
    pub(crate) contender: String,
    /// Of each round, the figures; one that does not exist is none.
    pub(crate) rounds: Vec<Vec<Option<f64>>>,
    /// Why there are none, or not all.
    pub(crate) missing: Option<String>,
}

impl Section {
    pub(crate) const fn new(title: &'static str, figures: &'static [&'static str]) -> Self {
        Self { title, figures, compares: true, rows: Vec::new(), notes: Vec::new() }
    }

    fn row(&mut self, condition: &str, contender: &str) -> &mut Row {
        let is_it = |row: &Row| row.condition == condition && row.contender == contender;
        let index = self.rows.iter().position(is_it).unwrap_or_else(|| {
            let (condition, contender) = (condition.to_owned(), contender.to_owned());
            self.rows.push(Row { condition, contender, rounds: vec![], missing: None });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// Enters the figures of one round.
    pub(crate) fn enter(&mut self, condition: &str, contender: &str, figures: Vec<Option<f64>>) {
        assert_eq!(figures.len(), self.figures.len(), "{}", self.title);
        self.row(condition, contender).rounds.push(figures);
    }

    /// Says why something was not measured.
    pub(crate) fn miss(&mut self, condition: &str, contender: &str, reason: &str) {
        self.row(condition, contender).missing = Some(reason.to_owned());
    }

    /// The first figure of a contender under a condition.
    pub(crate) fn figure(&self, condition: &str, contender: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.condition == condition && row.contender == contender)?.figure(0)
    }

    /// The ratio of a row's first figure to that of the first row under its condition that has one.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let mut alike = self.rows.iter().filter(|other| other.condition == row.condition);
        let first = alike.find_map(|other| other.figure(0))?;
        Some(row.figure(0)? / first).filter(|ratio| ratio.is_finite())
    }
}

impl Row {
    /// The median of the rounds.
    fn figure(&self, index: usize) -> Option<f64> {
        median(&self.rounds.iter().filter_map(|figures| figures[index]).collect::<Vec<_>>())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n**{}**\n", self.title)?;
        let mut header: Vec<_> =
            ["condition", "contender"].iter().chain(self.figures).map(ToString::to_string).collect();
        if self.compares {
            header.push(format!("ratio of {}", self.figures[0].split(',').next().unwrap_or_default()));
        }
        let mut conditions: Vec<_> = self.rows.iter().map(|row| row.condition.as_str()).collect();
        let mut seen = HashSet::new();
        conditions.retain(|condition| seen.insert(*condition));
        let under = |condition: &'_ str| {
            let condition = condition.to_owned();
            self.rows.iter().filter(move |row| row.condition == condition)
        };
        let rows = conditions.into_iter().flat_map(under);
        let lines: Vec<_> = std::iter::once(header).chain(rows.map(|row| self.line(row))).collect();
        f.write_str(&table(&lines))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "\n{note}"))
    }
}

impl Section {
    fn line(&self, row: &Row) -> Vec<String> {
        let mut line = vec![row.condition.clone(), row.contender.clone()];
        if row.rounds.is_empty() {
            line.extend(row.missing.as_ref().map(|reason| format!("not measured: {reason}")));
            return line;
        }
        let printed = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), number);
        line.extend((0..self.figures.len()).map(|index| printed(row.figure(index))));
        if self.compares {
            line.push(printed(self.ratio(row)));
        }
        line.extend(row.missing.as_ref().map(|reason| format!("not in all rounds: {reason}")));
        line
    }
}

/// Three significant digits, and no fewer before the point; of whole numbers, those that they have.
fn number(value: f64) -> String {
    match value.abs() {
        whole if whole.fract() == 0.0 => format!("{value:.0}"),
        ..0.0995 => format!("{value:.3}"),
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Markdown; lines may be shorter than the first.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let header = lines.first().map_or(0, Vec::len);
    // What is said instead of figures may run over.
    let wide = |line: &&Vec<String>| line.len() == header;
    let width =
        |column: usize| lines.iter().filter(wide).filter_map(|line| line.get(column)).map(String::len).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ").expect("a string takes it");
        }
        text.push_str("|\n");
        if index == 0 {
            text.extend(widths.iter().take(header).map(|width| format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let mut section = Section::new("Junk", &["CPU, us", "open"]);
        for round in [2.0, 4.0, 3.0] {
            section.enter("10k", "one", vec![Some(round), Some(50.0)]);
        }
        section.enter("10k", "other", vec![Some(31.0), None]);
        section.miss("10k", "third", "it does not start");
        section.enter("20k", "other", vec![Some(7.0), Some(1.0)]);
        section
    }

    #[test]
    fn ratios_are_to_the_first_under_the_same_condition() {
        let section = section();
        let ratios: Vec<_> = section.rows.iter().map(|row| section.ratio(row)).collect();
        assert_eq!(ratios, [Some(1.0), Some(31.0 / 3.0), None, Some(1.0)]);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let mut section = Section::new("Idle", &["CPU, us"]);
        section.enter("", "one", vec![Some(0.0)]);
        section.enter("", "other", vec![Some(3.0)]);
        assert_eq!(section.ratio(&section.rows[1]), None);
    }

    #[test]
    fn the_table_has_medians_and_says_what_was_not_measured() {
        let expected = "\n**Junk**\n\n\
            | condition | contender | CPU, us | open | ratio of CPU |\n\
            |-----------|-----------|---------|------|--------------|\n\
            | 10k       | one       | 3       | 50   | 1            |\n\
            | 10k       | other     | 31      | -    | 10.3         |\n\
            | 10k       | third     | not measured: it does not start |\n\
            | 20k       | other     | 7       | 1    | 1            |\n";
        assert_eq!(section().to_string(), expected);
    }

    #[test]
    fn numbers_have_three_digits() {
        let printed = [0.0, 0.0123, 0.5, 3.0, 9.999, 12.34, 99.99, 1234.5, 50.0].map(number);
        assert_eq!(printed, ["0", "0.012", "0.50", "3", "10.0", "12.3", "100", "1234", "50"]);
    }
}
