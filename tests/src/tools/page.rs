//! The report of a recording, as a browser shows it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::browser::Browser;
use super::endpoint::{Endpoint, Pace, Profile, ch_remote};
use crate::command::{command, output};
use crate::host::Isa;
use crate::tree::Tree;

/// Contrast that the guidelines for accessible pages want of text.
const CONTRAST: f64 = 4.5;

/// Luminance of the text's colour against the page's, as those guidelines
/// define it.
const CONTRAST_OF_TEXT: &str = "(() => {
    const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
        .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b };
    const style = getComputedStyle(document.body);
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
    return (a + .05) / (b + .05) })()";

/// Records a machine for a while and draws the report.
fn report(tree: &Tree, name: &str) -> Result<(PathBuf, PathBuf)> {
    let folder = tree.fresh_log_dir(name)?;
    let socket = folder.join("vm.sock");
    let recording = folder.join("recording.jsonl");
    let page = folder.join("report.html");
    {
        let _machine = Endpoint::start(tree, Profile::Debug, &socket, Isa::Vmx, 2, Pace::Moving)?;
        let shell = "timeout -s INT 4 \"$0\" --api-socket \"$1\" exit-stats record -o \"$2\" \
                     --interval 100; test -s \"$2\"";
        output(
            command("sh", ["-c", shell])
                .arg(ch_remote(tree))
                .args([&socket, &recording]),
        )?;
    }
    output(
        command(&ch_remote(tree).to_string_lossy(), ["exit-stats", "report"])
            .arg(&recording)
            .arg("-o")
            .arg(&page),
    )?;
    Ok((folder, page))
}

pub fn report_loads_light_and_dark_narrow_and_wide(tree: &Tree) -> Result<()> {
    let (folder, page) = report(tree, "tools-report")?;
    let mut browser = Browser::start(&folder)?;
    for scheme in ["light", "dark"] {
        for (width, height) in [(360, 740), (1440, 900)] {
            let view = format!("{scheme}-{width}");
            browser.dress(width, height, scheme)?;
            let problems = browser.open(&page)?;
            ensure!(problems.is_empty(), "{view}: {problems:?}");

            let wide = browser.evaluate("document.documentElement.scrollWidth")?;
            ensure!(
                wide.as_u64().is_some_and(|wide| wide <= width.into()),
                "{view}: the page is {wide} wide"
            );
            let plots = browser.evaluate(
                "[...document.querySelectorAll('svg')].filter(s => s.getBBox().width > 100).length",
            )?;
            ensure!(
                plots.as_u64().is_some_and(|plots| plots >= 3),
                "{view}: {plots} plots"
            );
            let contrast = browser.evaluate(CONTRAST_OF_TEXT)?;
            ensure!(
                contrast
                    .as_f64()
                    .is_some_and(|contrast| contrast >= CONTRAST),
                "{view}: contrast {contrast}"
            );
            let back = browser.evaluate("getComputedStyle(document.body).backgroundColor")?;
            let first = back.as_str().and_then(|back| {
                let digits: String = back
                    .chars()
                    .skip_while(|c| !c.is_ascii_digit())
                    .take_while(char::is_ascii_digit)
                    .collect();
                digits.parse::<u32>().ok()
            });
            ensure!(
                first.is_some_and(|red| (red > 127) == (scheme == "light")),
                "{view}: the page is {back}"
            );
            let loaded = browser.evaluate("performance.getEntriesByType('resource').length")?;
            ensure!(loaded == 0, "{view}: {loaded} things were loaded");
            println!("{}", browser.photograph(&format!("{view}.png"))?.display());
        }
    }
    Ok(())
}

pub fn data_behind_each_plot_can_be_copied(tree: &Tree) -> Result<()> {
    let (folder, page) = report(tree, "tools-data")?;
    let mut browser = Browser::start(&folder)?;
    browser.dress(1440, 900, "light")?;
    browser.open(&page)?;
    let boxes = browser.evaluate("document.querySelectorAll('textarea').length")?;
    let boxes = boxes.as_u64().context("No number of boxes")?;
    let plots = browser.evaluate("document.querySelectorAll('.plot svg').length")?;
    ensure!(
        plots.as_u64().is_some_and(|plots| boxes >= plots),
        "{plots} plots, {boxes} boxes of data"
    );
    browser.allow_clipboard()?;
    for index in 0..boxes {
        // Pressed, the button says when the clipboard has it.
        let copied = browser.evaluate(&format!(
            "(async () => {{ const box = document.querySelectorAll('textarea')[{index}];
                box.closest('details').open = true;
                const button = box.nextElementSibling;
                button.click();
                for (let n = 0; n < 50 && button.textContent !== 'Copied'; n++)
                    await new Promise(done => setTimeout(done, 20));
                return button.textContent === 'Copied'
                    ? navigator.clipboard.readText() : null }})()"
        ))?;
        let text = copied
            .as_str()
            .with_context(|| format!("Box {index} was not copied"))?;
        let columns = |line: &str| line.split(',').count();
        let mut lines = text.lines();
        let head = lines.next().map(columns).context("The data is empty")?;
        ensure!(
            head > 1 && text.lines().count() > 1,
            "Box {index} holds\n{text}"
        );
        // A name with a comma in it is in quotes.
        for line in lines.filter(|line| !line.contains('"')) {
            ensure!(columns(line) == head, "Box {index}, line {line:?}");
        }
    }
    let problems = browser.problems();
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(())
}
