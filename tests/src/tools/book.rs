//! The guide as a book, as a browser shows it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::browser::Browser;
use crate::tree::Tree;

/// Pictures that are not there, and links to places in the book that are not.
const MISSING: &str = "(async () => {
    const missing = [...document.images].filter(image => !image.naturalWidth).map(i => i.src);
    for (const link of document.querySelectorAll('main a[href]')) {
        const url = new URL(link.href);
        if (url.pathname === location.pathname && url.hash
            && !document.getElementById(decodeURIComponent(url.hash.slice(1))))
            missing.push(link.href);
    }
    return missing.join(' ') })()";

/// Local files that the page links to.
const LINKED: &str = "[...document.querySelectorAll('main a[href], nav a[href]')]
    .map(link => new URL(link.href)).filter(url => url.protocol === 'file:')
    .map(url => decodeURIComponent(url.pathname)).join('\\n')";

/// Opens every page, light and dark, narrow and wide.
pub fn every_page_shows_all_that_it_names(tree: &Tree) -> Result<()> {
    let book = tree.root().join("target/book");
    let folder = tree.fresh_log_dir("book")?;
    let mut browser = Browser::start(&folder)?;
    let mut pages = 0;
    for entry in fs::read_dir(&book).with_context(|| format!("There is no {}", book.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        // What is no chapter: the contents in a frame, the error of a server.
        if path.extension().is_none_or(|end| end != "html") || name == "toc" || name == "404" {
            continue;
        }
        look(&mut browser, &path, &name)?;
        pages += 1;
    }
    let chapters = fs::read_to_string(tree.root().join("docs/SUMMARY.md"))?
        .matches("](")
        .count();
    ensure!(
        pages >= chapters && chapters > 0,
        "{pages} pages of {chapters} chapters"
    );
    println!("{pages} pages; pictures are in {}", folder.display());
    Ok(())
}

fn look(browser: &mut Browser, page: &Path, name: &str) -> Result<()> {
    for (scheme, width, height) in [("light", 1440, 900), ("dark", 360, 740)] {
        browser.dress(width, height, scheme)?;
        let problems = browser.open(page)?;
        ensure!(problems.is_empty(), "{name}: {problems:?}");
        let wide = browser.evaluate("document.documentElement.scrollWidth")?;
        ensure!(
            wide.as_u64().is_some_and(|wide| wide <= width.into()),
            "{name} is {wide} wide where {width} fit"
        );
        let missing = browser.evaluate(MISSING)?;
        ensure!(missing == "", "{name} has not {missing}");
        browser.photograph(&format!("{name}-{scheme}.png"))?;
    }
    let linked = browser.evaluate(LINKED)?;
    for file in linked.as_str().context("No links")?.lines() {
        ensure!(Path::new(file).exists(), "{name} links to {file}");
    }
    Ok(())
}
