//! Profiles as pictures on a terminal, for whoever has a camera at hand and no better way.
//!
//! A picture has its dark modules dark and its light ones, and the quiet zone around them, light: on a terminal that is said in
//! colours, whatever the terminal's own are. Where stdout is no terminal there are no colours to say it in: there the light modules are
//! drawn, as on a dark terminal they have to be.

use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

/// Black on white. Terminals that do not know bright white leave the white that comes before it.
const COLOURS: &str = "\x1b[0;30;47;107m";
const NO_COLOURS: &str = "\x1b[0m";

/// The quiet zone on both sides, in modules.
const QUIET: usize = 2 * 4;

/// What a picture is shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Canvas {
    /// A terminal of so many columns, where it says how many.
    Terminal { columns: Option<usize> },
    /// Anything else.
    Plain,
}

/// Draws a text.
///
/// # Errors
/// What to do when it does not fit into a picture, or the picture not on the terminal.
pub(super) fn draw(text: &str, canvas: Canvas) -> Result<Zeroizing<String>, String> {
    // A screen does no damage to a picture: the least correction makes the smallest one.
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|_| {
        format!(
            "the profile is too long for a QR code ({} characters): deliver it by --out FILE or as a line",
            text.len()
        )
    })?;
    let width = code.width() + QUIET;
    match canvas {
        Canvas::Terminal { columns: Some(columns) } if columns < width => Err(format!(
            "the QR code is {width} columns wide, and this terminal has {columns}: make it wider, or its letters smaller"
        )),
        Canvas::Terminal { .. } => {
            let picture = Zeroizing::new(code.render::<Dense1x2>().module_dimensions(1, 1).build());
            let coloured = |line: &str| format!("{COLOURS}{line}{NO_COLOURS}\n");
            Ok(Zeroizing::new(picture.lines().map(coloured).collect()))
        }
        Canvas::Plain => {
            let mut renderer = code.render::<Dense1x2>();
            renderer.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).module_dimensions(1, 1);
            let mut picture = renderer.build();
            picture.push('\n');
            Ok(Zeroizing::new(picture))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quiet_zone_is_light_on_each_canvas() {
        let on_terminal = draw("postern1:AAAA", Canvas::Terminal { columns: None }).unwrap();
        for line in on_terminal.lines() {
            let line = line.strip_prefix(COLOURS).and_then(|line| line.strip_suffix(NO_COLOURS)).unwrap();
            assert!(line.starts_with("    ") && line.ends_with("    "), "{line:?}");
        }
        let plain = draw("postern1:AAAA", Canvas::Plain).unwrap();
        assert!(plain.lines().next().unwrap().chars().all(|module| module == '█'));
        assert_eq!(plain.lines().count(), on_terminal.lines().count());
        assert!(!plain.contains('\x1b'));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_do() {
        let text = "a".repeat(200);
        let wide = draw(&text, Canvas::Terminal { columns: Some(60) }).unwrap_err();
        assert!(wide.contains("61 columns"), "{wide}");
        assert!(draw(&text, Canvas::Terminal { columns: Some(61) }).is_ok());
        let long = draw(&"a".repeat(3000), Canvas::Plain).unwrap_err();
        assert!(long.contains("--out FILE") && !long.contains("aa"), "{long}");
    }
}
