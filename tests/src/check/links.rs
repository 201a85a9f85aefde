//! Links within the documents lead somewhere.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::artifact::stamp::files_below;
use crate::tree::Tree;

/// Documents outside `docs/`.
const OTHERS: [&str; 4] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "instrumentation/kvm/README.md",
];

/// Every relative link names a file that is there and a heading in it, and the
/// summary lists every page.
pub fn links_of_the_documents_resolve(tree: &Tree) -> Result<()> {
    let docs = tree.root().join("docs");
    let mut pages: Vec<PathBuf> = OTHERS.iter().map(|name| tree.root().join(name)).collect();
    pages.extend(
        files_below(&docs)?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "md")),
    );
    let mut texts = HashMap::new();
    for page in &pages {
        let text =
            fs::read_to_string(page).with_context(|| format!("Cannot read {}", page.display()))?;
        texts.insert(page.clone(), text);
    }
    let mut wrong = Vec::new();
    for page in &pages {
        let folder = page.parent().unwrap_or(page);
        for link in links(&texts[page]) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => page.clone(),
                path => plain(&folder.join(path)),
            };
            let is_good = target.exists()
                && (heading.is_empty()
                    || texts
                        .get(&target)
                        .is_some_and(|text| anchors(text).any(|anchor| anchor == heading)));
            if !is_good {
                wrong.push(format!("{}: {link}", shown(page, tree)));
            }
        }
    }
    let summary = docs.join("SUMMARY.md");
    let listed: Vec<PathBuf> = links(texts.get(&summary).map_or("", |text| text))
        .iter()
        .map(|link| plain(&docs.join(link)))
        .collect();
    for page in pages.iter().filter(|page| page.starts_with(&docs)) {
        if *page != summary && !listed.contains(page) {
            wrong.push(format!(
                "docs/SUMMARY.md does not list {}",
                shown(page, tree)
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "Links lead nowhere:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn shown(page: &Path, tree: &Tree) -> String {
    let page = page.strip_prefix(tree.root()).unwrap_or(page);
    page.display().to_string()
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// The lines that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Targets of links and images to places in this repository.
fn links(text: &str) -> Vec<String> {
    let joined: Vec<&str> = prose(text).collect();
    let joined = joined.join("\n");
    joined
        .match_indices("](")
        .filter_map(|(at, _)| joined[at + 2..].split_once(')'))
        .map(|(target, _)| target.to_owned())
        .filter(|target| !target.contains("://"))
        .collect()
}

/// What headings are called in links, on GitHub and in the book.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
                .map(|letter| if letter == ' ' { '-' } else { letter })
                .collect()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text =
            "[a](b.md#c) ![d](e.svg)\n```\n[no](code.md)\n```\n[f](https://g) [two\nlines](h.md)";
        assert_eq!(links(text), ["b.md#c", "e.svg", "h.md"]);
    }

    #[test]
    fn headings_are_called_as_on_github() {
        let found: Vec<String> =
            anchors("# The `kernel`: what, why\n## ch-remote exit-stats\n```\n# no\n```\n")
                .collect();
        assert_eq!(found, ["the-kernel-what-why", "ch-remote-exit-stats"]);
    }
}
