//! Files of one-time sequences, as knockd has them: a sequence a line, good once. What was used is a comment from then on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use postern_proto::sequence::Steps;
use postern_proto::text::TextError;

use super::{ConfigError, Exposure, read_safe};

/// Sequences in one file, at the most.
const MOST: usize = 10_000;

/// The sequences that were not used yet, in their order.
///
/// # Errors
/// [`ConfigError`] for a file that others may change, and for the first line that is no sequence.
pub(super) fn read(file: &Path) -> Result<Vec<Steps>, ConfigError> {
    let text = read_safe(file, Exposure::NotWritable)?;
    let error = |cause| ConfigError::Text { path: file.to_owned(), cause };
    let mut unused = Vec::new();
    for (at, line) in lines(&text) {
        let steps = line.trim().parse::<Steps>();
        unused.push(steps.map_err(|why| error(TextError::at(&text, &(at..at), why.without_text())))?);
        if unused.len() > MOST {
            return Err(error(TextError::at(&text, &(at..at), format!("more than {MOST} sequences"))));
        }
    }
    Ok(unused)
}

/// Makes the line of a sequence a comment, durably: in its place, so that whatever happens the file is as it was or has
/// one line less.
///
/// # Errors
/// When it is not in the file, or cannot be written.
pub(crate) fn spend(file: &Path, used: &Steps) -> anyhow::Result<()> {
    let strike = || {
        let mut open = File::options().read(true).write(true).open(file)?;
        let mut text = String::new();
        open.read_to_string(&mut text)?;
        let of_it = |line: &str| line.trim().parse::<Steps>().is_ok_and(|steps| steps == *used);
        let found = lines(&text).find(|(_, line)| of_it(line));
        let (at, _) = found.ok_or_else(|| io::Error::other("the sequence is not in it any more"))?;
        open.write_all_at(b"#", at as u64)?;
        open.sync_all()
    };
    strike().with_context(|| format!("cannot note in {} that a sequence was used", file.display()))
}

/// What is no comment and not empty, with its place.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut begin = 0;
    let placed = text.split_inclusive('\n').map(move |line| {
        let at = begin;
        begin += line.len();
        (at, line)
    });
    placed.filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_is_good_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sequences");
        fs::write(&file, "# a list\n 1,2\n\n3:udp,4\n 1,2\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let steps = |text: &str| text.parse::<Steps>().unwrap();
        assert_eq!(read(&file).unwrap(), [steps("1,2"), steps("3:udp,4"), steps("1,2")]);
        spend(&file, &steps("3:udp,4")).unwrap();
        spend(&file, &steps("1,2")).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "# a list\n#1,2\n\n#:udp,4\n 1,2\n");
        assert_eq!(read(&file).unwrap(), [steps("1,2")]);
        spend(&file, &steps("1,2")).unwrap();
        assert_eq!(read(&file).unwrap(), []);
        assert!(spend(&file, &steps("1,2")).is_err());
        fs::write(&file, "1,2\nhttp\n").unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("sequences"), "{error}");
    }
}
