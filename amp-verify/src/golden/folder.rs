//! The folder of goldens: reports missing files, and decides which files a test may write.

use std::{env, fs, io, io::Write, path::PathBuf};

use amp_core::{Error, Result, file::Staged, hardware::Fingerprint};

use super::{Golden, Site, Taken, Target, incomparable, parse};

/// The environment variable that allows a test to write missing goldens and anchors, if it is
/// `write`.
const ANCHORS: &str = "AMP_ANCHORS";

/// The folder of goldens, and what the test may write there.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The test's source file; a golden contains its name.
    source: &'static str,
    /// Whether a missing golden or anchor may be written.
    writes: bool,
    /// Whether a golden may be recorded if neither it nor its anchor exists. This is false in CI,
    /// where the new files would be lost.
    records_new: bool,
    /// Whether insta itself writes goldens that are missing or have changed.
    insta_writes: bool,
    /// Whether `INSTA_UPDATE` tells insta what to write. Then this code leaves the writing of
    /// goldens to insta.
    insta_decides: bool,
    /// Whether every seed must run even if the first one agrees with the golden: because the whole
    /// text must be equal, or because the golden is recorded again.
    whole: bool,
}

impl Folder {
    /// Returns the folder that the environment variable `AMP_GOLDENS` names. If it is not set,
    /// returns the folder of `site`.
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

    /// Returns the golden of this target on this kind of machine, with which the first seed is
    /// compared before the others run. Returns `None` if it does not exist, or if every seed must
    /// run.
    pub(super) fn known(&self, target: &Target, found: &Golden) -> Option<Golden> {
        if self.whole { None } else { target.known(found, &self.path) }
    }

    /// Returns the target with the recorded differences between machines (`NAME.spread.json`) from
    /// this folder.
    ///
    /// # Errors
    /// When the spread file is damaged.
    pub(super) fn with_recorded_spread(&self, target: &Target) -> Result<Target> {
        let name = target.file_name(Some(&target.fingerprint()?));
        target.with_recorded_spread(&self.path, &name)
    }

    /// Checks before the training whether the golden and its anchor exist or may be written, so
    /// that a test with a missing file fails at once. `test` is the test's name. Returns the machine
    /// on which the golden was recorded, or `None` if there is no golden yet.
    ///
    /// # Errors
    /// When a golden or its anchor is missing and may not be written, the golden is from another
    /// kind of machine, or its spread file is damaged.
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
                    "NOT COMPARABLE: there is no golden {} yet: record it with {command}, read \
                     its figures, and commit it with its anchor",
                    golden.display()
                )));
            }
            // Writes to standard error directly, because libtest does not capture this: the user
            // must see it and commit the new files.
            let _ = writeln!(
                io::stderr(),
                "{name} is recorded for the first time, in {}: read its figures and commit it",
                self.path.display()
            );
            return Ok(None);
        }
        if !anchor.exists() && !self.writes {
            return Err(Error::config(format!(
                "{}: a golden needs its anchor: write the anchor with {command}, and commit it",
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

    /// Prepares a new golden for insta's comparison with the golden in the folder, as
    /// [`Target::prepare`] does. Writes missing files if that is allowed.
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

    /// Returns whether missing files of the golden `name` may be written.
    fn may_write(&self, name: &str) -> bool {
        let is_new = !["snap", "anchor.json"].iter().any(|end| self.file(name, end).exists());
        self.writes || (self.records_new && is_new)
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.path.join(format!("{name}.{end}"))
    }
}
