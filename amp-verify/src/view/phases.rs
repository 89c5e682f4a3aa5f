//! Formats how long each phase of the profiled steps takes.

use amp_core::{
    Result,
    event::{Event, Subscriber},
    trainer::{Phase, Profile},
};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// Collects the profiled steps of each run, and formats a table when a run ends.
#[derive(Debug, Default)]
pub struct PhaseTables {
    run: String,
    steps: Vec<Profile>,
    text: String,
}

impl PhaseTables {
    /// Returns the tables of all finished runs.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Subscriber for PhaseTables {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => self.run = start.run.precision.to_string(),
            Event::Profiled(profile) => self.steps.push(profile.clone()),
            Event::FitEnd(_) => {
                let steps = std::mem::take(&mut self.steps);
                self.text += &format!("{}: {}", self.run, phases(&steps));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Formats for each phase of a step its mean time, the standard deviation of this time, and the
/// phase's fraction of the step's time. If there are several steps, leaves out the first one,
/// because in it kernels are loaded and dtypes are recorded.
pub fn phases(profile: &[Profile]) -> String {
    let steps = if profile.len() > 1 { &profile[1..] } else { profile };
    let on_device = steps.iter().flat_map(|step| &step.spans).any(|span| span.device.is_some());
    let total: f64 = Phase::ALL.iter().map(|phase| mean(steps, *phase)).sum();
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["phase", "mean ms", "± sd", "share"]);
    for phase in Phase::ALL {
        let mean = mean(steps, phase);
        table.add_row([
            phase.name().to_owned(),
            format!("{:.3}", 1e3 * mean),
            format!("{:.3}", 1e3 * deviation(steps, phase, mean)),
            format!("{:.1}%", if total > 0.0 { 100.0 * mean / total } else { 0.0 }),
        ]);
    }
    table.add_row(["step".to_owned(), format!("{:.3}", 1e3 * total), String::new(), String::new()]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let clock = if on_device { "CUDA events" } else { "host clock" };
    let mut out = format!("{} profiled steps ({clock})\n{table}\n", steps.len());
    if let Some(bytes) = steps.iter().filter_map(|step| step.memory).max() {
        out += &format!("memory held: {:.1} MiB\n", bytes as f64 / f64::from(1 << 20));
    }
    out
}

fn mean(steps: &[Profile], phase: Phase) -> f64 {
    steps.iter().map(|step| step.seconds(phase)).sum::<f64>() / steps.len().max(1) as f64
}

fn deviation(steps: &[Profile], phase: Phase, mean: f64) -> f64 {
    let squares = steps.iter().map(|step| (step.seconds(phase) - mean).powi(2)).sum::<f64>();
    (squares / steps.len().max(1) as f64).sqrt()
}
