//! The folder of goldens (recorded results): reports missing files, and decides which files a test
//! may write.

use std::{env, fs, io, io::Write, path::PathBuf};

use amp_core::{Error, Result, file::Staged, hardware::Fingerprint};

use super::{Golden, Site, Taken, Target, incomparable, parse};

/// The environment variable that allows a golden test to write missing files, if its value is
/// `write`. The files are goldens and their anchors (first recordings).
const ANCHORS: &str = "AMP_ANCHORS";

/// The folder of the recorded results (goldens), and what a golden test may write there.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The source file of the golden test. Its path is written into the golden's header.
    source: &'static str,
    /// Whether a missing golden (recorded results) or anchor (first recording) may be written.
    writes: bool,
    /// Whether a missing golden may be recorded together with its missing anchor. This is false in
    /// CI, where the new files would be lost.
    records_new: bool,
    /// Whether the library insta itself writes goldens that are missing or have changed.
    insta_writes: bool,
    /// Whether `INSTA_UPDATE` is set, other than to `auto`. If so, only insta records goldens, and
    /// this code records none.
    insta_decides: bool,
    /// Whether the golden test must train with every seed, even if the results of the first seed
    /// agree with the recorded ones. This is true if `INSTA_REQUIRE_FULL_MATCH` is `1` or
    /// `INSTA_UPDATE` is `force`.
    whole: bool,
}

impl Folder {
    /// Returns the folder in which the recorded results (goldens) are: the folder named by the
    /// environment variable `AMP_GOLDENS`, or `site.folder` if the variable is not set.
    pub(super) fn of(site: Site) -> Self {
        let set = |name: &str| env::var(name).unwrap_or_default();
        let update = set("INSTA_UPDATE");
        let insta_decides = !matches!(update.as_str(), "" | "auto");
        Self {
            path: env::var_os("AMP_GOLDENS").map_or_else(|| site.folder.into(), PathBuf::from),
            source: site.file,
            writes: set(ANCHORS) == "write",
            records_new: !insta_decides && matches!(set("CI").as_str(), "" | "0" | "false"),
            insta_writes: insta_decides && update != "no" || set("INSTA_FORCE_PASS") == "1",
            insta_decides,
            whole: update == "force" || set("INSTA_REQUIRE_FULL_MATCH") == "1",
        }
    }

    /// Returns the recorded results (the golden) of this model for this kind of machine. The caller
    /// compares them with the results of the first seed, and need not train with the other seeds if
    /// they agree. Returns `None` if there is no golden, or if every seed must be trained.
    pub(super) fn known(&self, target: &Target, found: &Golden) -> Option<Golden> {
        if self.whole { None } else { target.known(found, &self.path) }
    }

    /// Returns a copy of `target` (the model and its options) with the differences between machines
    /// that were recorded in the file `NAME.spread.json` of this folder.
    ///
    /// # Errors
    /// When the spread file cannot be parsed.
    pub(super) fn with_recorded_spread(&self, target: &Target) -> Result<Target> {
        let name = target.file_name(Some(&target.fingerprint()?));
        target.with_recorded_spread(&self.path, &name)
    }

    /// Checks that the golden and its anchor exist or may be written. This happens before the
    /// training, so that a test with a missing file fails at once. `test` is the name of the test.
    /// Returns the description of the machine on which the golden was recorded, or `None` if there
    /// is no golden yet.
    ///
    /// # Errors
    /// When the golden or its anchor is missing and may not be written, the golden was recorded on
    /// another kind of machine, or its spread file cannot be parsed.
    pub(super) fn check_recorded(
        &self,
        target: &Target,
        test: Option<&str>,
    ) -> Result<Option<Fingerprint>> {
        let fingerprint = target.fingerprint()?;
        let name = target.file_name(Some(&fingerprint));
        let [golden, anchor] = ["snap", "anchor.json"].map(|end| self.file(&name, end));
        target.with_recorded_spread(&self.path, &name)?;
        let command = match test {
            Some(test) if test != "main" => format!("`{ANCHORS}=write cargo test {test}`"),
            _ => format!("`{ANCHORS}=write cargo test`"),
        };
        if !golden.exists() {
            let may_write = self.may_write(&name) || (self.insta_writes && anchor.exists());
            if !may_write {
                return Err(Error::NotComparable(format!(
                    "NOT COMPARABLE: there is no golden {} yet: record it with {command}, check \
                     its values, and commit it with its anchor",
                    golden.display()
                )));
            }
            // Writes directly to standard error, because libtest does not capture what is written
            // there. The user must see this line in order to commit the new files.
            // A fingerprint has no threads on CUDA, where goldens have no spread file.
            let narrower = match fingerprint.threads {
                0 => "",
                _ => "; `cargo amp margins --what goldens` then narrows its tolerances",
            };
            let _ = writeln!(
                io::stderr(),
                "{name} is recorded for the first time, in {}: check its values and commit \
                 it{narrower}",
                self.path.display()
            );
            return Ok(None);
        }
        if !anchor.exists() && !self.writes {
            return Err(Error::config(format!(
                "{}: the golden has no anchor (its first recording): write it with {command}, and \
                 commit it",
                anchor.display()
            )));
        }
        let text = fs::read_to_string(&golden).map_err(|error| Error::io(&golden, error))?;
        let known = parse(&text).ok().and_then(|known| known.fingerprint);
        match known.as_ref().and_then(|known| incomparable(known, &fingerprint)) {
            Some(why) => Err(Error::NotComparable(why)),
            None => Ok(known),
        }
    }

    /// Calls [`Target::prepare`], so that insta can compare the new results with the recorded
    /// golden. Writes the golden's missing files if the test may write.
    ///
    /// # Errors
    /// When [`Target::prepare`] fails, or a file cannot be written.
    pub(super) fn taken(&self, target: &Target, golden: &Golden) -> Result<Taken> {
        let name = target.file_name(golden.fingerprint.as_ref());
        let writes = self.may_write(&name);
        if writes {
            fs::create_dir_all(&self.path).map_err(|error| Error::io(&self.path, error))?;
        }
        let taken = target.prepare(golden, &self.path, writes)?;
        let path = self.file(&taken.name, "snap");
        if writes && !self.insta_decides && !path.exists() {
            let Taken { text, .. } = &taken;
            let text = format!("---\nsource: {}\n---\n{text}\n", self.source);
            Staged::create(&path)?.write(text.as_bytes())?;
        }
        Ok(taken)
    }

    /// Returns whether the test may write missing files of the golden `name`.
    fn may_write(&self, name: &str) -> bool {
        let is_new = !["snap", "anchor.json"].iter().any(|end| self.file(name, end).exists());
        self.writes || (self.records_new && is_new)
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.path.join(format!("{name}.{end}"))
    }
}
