//! The folder of goldens: which files are missing, and which a run may write.

use std::{env, fs, io, io::Write, path::PathBuf};

use amp_core::{Error, Result, file::Staged};

use super::{Golden, Site, Taken, Target, incomparable, parse};

/// The environment variable that allows missing files to be written, with the value `write`.
const ANCHORS: &str = "AMP_ANCHORS";

/// The folder of goldens, and the run's permissions in it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The test's source file, which is part of a golden.
    source: &'static str,
    /// Whether a missing golden or anchor is written.
    writes: bool,
    /// Whether a golden is recorded for the first time. Not in CI, where the file would be lost.
    records_new: bool,
    /// Whether insta writes goldens that are missing or moved.
    insta_writes: bool,
    /// Whether insta's behaviour was set explicitly.
    insta_decides: bool,
    /// Whether figures must equal the golden's exactly, or are recorded again: both need every
    /// seed.
    whole: bool,
}

impl Folder {
    /// The folder that `AMP_GOLDENS` names, or else the folder of `site`.
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

    /// The golden of this target and machine, if there is one. Figures that agree with it need no further
    /// seeds.
    pub(super) fn known(&self, target: &Target, found: &Golden) -> Option<Golden> {
        if self.whole { None } else { target.known(found, &self.path) }
    }

    /// The target with the spread recorded next to its golden.
    ///
    /// # Errors
    /// When the file of the spread is damaged.
    pub(super) fn with_recorded_spread(&self, target: &Target) -> Result<Target> {
        let name = target.file_name(Some(&target.fingerprint()?));
        target.with_recorded_spread(&self.path, &name)
    }

    /// Reports, before the training, what would be missing after it; `test` is the test's name.
    ///
    /// # Errors
    /// When a golden or its anchor is missing and may not be written, the golden is from another kind of
    /// machine, or its spread is damaged.
    pub(super) fn check_recorded(&self, target: &Target, test: Option<&str>) -> Result<()> {
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
            // Written around libtest's capture of output, because the new files must be committed.
            let _ = writeln!(
                io::stderr(),
                "{name} is recorded for the first time, in {}: read its figures and commit it",
                self.path.display()
            );
            return Ok(());
        }
        if !anchor.exists() && !self.writes {
            return Err(Error::config(format!(
                "{}: a golden needs its anchor: write it with {command}, and commit it",
                anchor.display()
            )));
        }
        let text = fs::read_to_string(&golden).map_err(|error| Error::io(&golden, error))?;
        let known = parse(&text).ok().and_then(|known| known.fingerprint);
        match known.and_then(|known| incomparable(&known, &fingerprint)) {
            Some(why) => Err(Error::NotComparable(why)),
            None => Ok(()),
        }
    }

    /// Compares a new golden with the folder's, and writes missing files if that is allowed. insta does
    /// the rest.
    ///
    /// # Errors
    /// The same as [`Target::prepare`]'s, and when a file cannot be written.
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

    /// Whether missing files of the golden `name` may be written.
    fn may_write(&self, name: &str) -> bool {
        let is_new = !["snap", "anchor.json"].iter().any(|end| self.file(name, end).exists());
        self.writes || (self.records_new && is_new)
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.path.join(format!("{name}.{end}"))
    }
}
