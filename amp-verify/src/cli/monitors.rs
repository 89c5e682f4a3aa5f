use amp_core::callback::{
    Callback, GradientStatistics, LearningRateMonitor, MemoryMonitor, SpeedBenchmark,
};
use clap::{Args, ValueEnum};

/// Options for additional logged values.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Log additional values, separated by commas: memory (peak memory of each epoch), speed (times
    /// of epochs and batches), lr (learning rates, at the logging interval), gradients (norm, NaN,
    /// infinities and zeros of each gradient)
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        hide_possible_values = true
    )]
    pub monitor: Vec<Monitor>,
}

/// The choices of `--monitor`. Each choice adds a callback that logs additional values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Monitor {
    /// [`MemoryMonitor`]
    Memory,
    /// [`SpeedBenchmark`]
    Speed,
    /// [`LearningRateMonitor`]
    Lr,
    /// [`GradientStatistics`]
    Gradients,
}

impl MonitorArgs {
    /// Returns one callback for each chosen monitor. A monitor that the user named twice gets only
    /// one callback.
    pub fn callbacks(&self) -> Vec<Box<dyn Callback>> {
        let asked = Monitor::value_variants().iter().filter(|one| self.monitor.contains(one));
        asked.map(|monitor| monitor.callback()).collect()
    }
}

impl Monitor {
    fn callback(self) -> Box<dyn Callback> {
        match self {
            Self::Memory => Box::new(MemoryMonitor::new()),
            Self::Speed => Box::new(SpeedBenchmark::new()),
            Self::Lr => Box::new(LearningRateMonitor::new()),
            Self::Gradients => Box::new(GradientStatistics::new()),
        }
    }
}
