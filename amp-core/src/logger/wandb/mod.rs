//! Writes offline runs of Weights & Biases.

mod framing;
mod proto;
mod row;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use prost::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::{
    framing::{Framing, HEADER},
    proto::{Config, Exit, File, Files, Header, History, Info, Item, Record, Run, Step, Summary},
    row::{Row, items, number},
};
use super::{
    Background, Sink,
    file::RecordFile,
    hyperparameters, png,
    scalar::{Scalar, scalars},
};
use crate::{
    Error, Result,
    event::{Event, FitEnd, RunStart, Subscriber},
    file,
    log::{Image, Media},
};

/// Writes each run as an offline run of Weights & Biases to `FOLDER/wandb/offline-run-<time>-<id>`,
/// without a network connection. `wandb sync` uploads the run. The W&B project has the model's
/// name, and the W&B run has the precision's name.
///
/// | W&B | what the logger writes there |
/// | --- | --- |
/// | config | hyperparameters, data, precision and seed |
/// | history | the values that [`MemoryLogger`](super::MemoryLogger) keeps, under the same tags, with one row per applied optimizer step. Also images, texts and histograms (of at most 512 buckets). A value that is logged per attempted step, such as the loss scale, is in the row of the last applied optimizer step, because W&B requires that the step grows from row to row |
/// | summary | the last value of each key |
/// | files | images |
///
/// The files have the format of wandb 0.31. Their header's `min_consumer`, the lowest version of
/// the W&B server that accepts them, is 0.70.0.
#[derive(Debug)]
pub struct WandbLogger(Background);

impl WandbLogger {
    /// Creates a logger that writes to `folder`. Creates the folder if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be created or written to.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into().join("wandb");
        let failed = |error| Error::io(&folder, error);
        file::create_folder(&folder)?;
        tempfile::tempfile_in(&folder).map_err(failed)?;
        Background::start(Runs { folder, run: None }).map(Self)
    }
}

impl Subscriber for WandbLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Batch { .. } => Ok(()),
            _ => self.0.on_event(event),
        }
    }
}

struct Runs {
    folder: PathBuf,
    /// The current run. `None` before a run starts and after it has ended.
    run: Option<Offline>,
}

struct Offline {
    id: String,
    /// The folder of this run, `offline-run-<time>-<id>`.
    folder: PathBuf,
    file: RecordFile,
    framing: Framing,
    /// The number of records written to the file.
    records: i64,
    started: Instant,
    row: Row,
    /// The last value of each key, as JSON. A key is a path of names.
    summary: BTreeMap<Vec<String>, String>,
    /// The number of optimizer steps that were skipped.
    skipped: u64,
}

impl Offline {
    fn start(folder: &Path, start: &RunStart) -> Result<Self> {
        let now = SystemTime::now();
        let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id: String = (0..8).map(|_| fastrand::char('a'..='z')).collect();
        let stamp = chrono::DateTime::<chrono::Utc>::from(now).format("%Y%m%d_%H%M%S");
        let folder = folder.join(format!("offline-run-{stamp}-{id}"));
        let files = folder.join("files");
        fs::create_dir_all(&files).map_err(|error| Error::io(&files, error))?;
        let mut file = RecordFile::create(&folder.join(format!("run-{id}.wandb")))?;
        file.write(&HEADER)?;
        let mut run = Self {
            id: id.clone(),
            folder,
            file,
            framing: Framing::default(),
            records: 0,
            started: Instant::now(),
            row: Row::default(),
            summary: BTreeMap::new(),
            skipped: 0,
        };
        let version = proto::Version {
            producer: format!("amp-core {}", env!("CARGO_PKG_VERSION")),
            min_consumer: "0.70.0".to_owned(),
        };
        let header = Some(Header { version_info: Some(version) });
        run.record(Record { header, ..Record::default() })?;
        let config = hyperparameters(start);
        let item = |(name, value): (String, Value)| Item {
            nested_key: vec![name],
            value_json: value.to_string(),
        };
        run.record(Record {
            run: Some(Run {
                run_id: id,
                project: start.model.clone(),
                config: Some(Config { update: config.into_iter().map(item).collect() }),
                display_name: start.precision.name().to_owned(),
                host: gethostname::gethostname().to_string_lossy().into_owned(),
                start_time: Some(time_of(time)),
            }),
            ..Record::default()
        })?;
        Ok(run)
    }

    fn record(&mut self, record: Record) -> Result<()> {
        self.records += 1;
        let info = Some(Info { stream_id: self.id.clone() });
        let record = Record { num: self.records, info, ..record };
        self.file.write(&self.framing.framed(&record.encode_to_vec()))
    }

    /// Returns the row to which values of `step` are added. If a new row begins, writes the
    /// previous row first.
    fn row(&mut self, step: u64) -> Result<&mut Row> {
        if let Some((step, row)) = self.row.begin(step) {
            self.write_row(step, row)?;
        }
        Ok(&mut self.row)
    }

    fn write_row(&mut self, step: u64, row: BTreeMap<Vec<String>, String>) -> Result<()> {
        let runtime = self.started.elapsed().as_secs_f64();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let own = [
            ("_step", step.to_string()),
            ("_runtime", number(runtime)),
            ("_timestamp", number(now.as_secs_f64())),
        ];
        self.summary.extend(row.clone());
        let own = own.map(|(key, value)| (vec![key.to_owned()], value));
        self.summary.extend(own.clone());
        let step = Some(Step { num: step.cast_signed() });
        let history = Some(History { item: items(row.into_iter().chain(own)), step });
        self.record(Record { history, ..Record::default() })
    }

    fn write_summary(&mut self) -> Result<()> {
        let update = items(self.summary.clone().into_iter());
        self.record(Record { summary: Some(Summary { update }), ..Record::default() })
    }

    fn end(mut self, exit_code: i32) -> Result<()> {
        if let Some((step, row)) = self.row.take() {
            self.write_row(step, row)?;
        }
        self.write_summary()?;
        let runtime = i32::try_from(self.started.elapsed().as_secs()).unwrap_or(i32::MAX);
        self.record(Record { exit: Some(Exit { exit_code, runtime }), ..Record::default() })?;
        self.file.flush()
    }

    fn media(&mut self, step: u64, name: &str, media: &Media) -> Result<()> {
        let value = match media {
            Media::Text(text) => Value::from(text.as_str()),
            Media::Histogram(histogram) => {
                let (counts, edges) = row::buckets(histogram);
                serde_json::json!({ "_type": "histogram", "values": counts, "bins": edges })
            }
            Media::Image(image) => self.image(step, name, image)?,
        };
        self.row(step)?.put(name, &value);
        Ok(())
    }

    /// Writes an image to a PNG file and returns the file's description for the run's history.
    fn image(&mut self, step: u64, name: &str, image: &Image) -> Result<Value> {
        let bytes = png::encoded(image)?;
        let hash =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let path = format!("media/images/{name}_{step}_{}.png", &hash[..20]);
        let place = self.folder.join("files").join(&path);
        let folder = place.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        fs::write(&place, &bytes).map_err(|error| Error::io(&place, error))?;
        let file = File { path: path.clone(), policy: 0, kind: 0 };
        self.record(Record { files: Some(Files { files: vec![file] }), ..Record::default() })?;
        Ok(serde_json::json!({
            "_type": "image-file",
            "sha256": hash,
            "size": bytes.len(),
            "path": path,
            "format": "png",
            "width": image.width,
            "height": image.height,
        }))
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Media { global_step, name, media } => self.media(*global_step, name, media)?,
            Event::Skipped(_) => self.skipped += 1,
            _ => {}
        }
        let is_attempt = matches!(event, Event::Skipped(_) | Event::Scale { .. });
        for Scalar { tag, step, value } in scalars(event) {
            let step = if is_attempt { step.saturating_sub(self.skipped) } else { step };
            self.row(step)?.put_number(&tag, value);
        }
        match event {
            Event::EpochEnd(_) => self.write_summary(),
            _ => Ok(()),
        }
    }
}

impl Runs {
    /// Marks a run that did not finish as failed.
    fn fail(&mut self) -> Result<()> {
        self.run.take().map_or(Ok(()), |run| run.end(1))
    }
}

impl Sink for Runs {
    fn write(&mut self, event: &Event) -> Result<()> {
        if let Some(start) = event.started() {
            self.fail()?;
            self.run = Some(Offline::start(&self.folder, start)?);
        }
        if let Some(run) = &mut self.run {
            run.write(event)?;
        }
        let exit_code = match event {
            Event::FitEnd(FitEnd { interrupted: Some(signal), .. }) => 128 + signal.cast_signed(),
            _ => 0,
        };
        match self.run.take_if(|_| event.ends_run()) {
            Some(run) => run.end(exit_code),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.run.as_mut().map_or(Ok(()), |run| run.file.flush())
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        // An error can be ignored here: the run has failed for another reason, which the caller
        // reports.
        let _ = self.fail();
    }
}

fn time_of(since_1970: Duration) -> proto::Time {
    proto::Time {
        seconds: since_1970.as_secs().cast_signed(),
        nanos: since_1970.subsec_nanos().cast_signed(),
    }
}
