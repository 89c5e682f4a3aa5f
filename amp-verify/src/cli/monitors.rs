use amp_core::callback::{
    Callback, GradientStatistics, LearningRateMonitor, MemoryMonitor, SpeedBenchmark,
};
use clap::{Args, ValueEnum};

/// Additional values to log.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Also log, separated by commas: each epoch's peak memory (memory); the times of epochs and batches
    /// (speed); at the logging interval the learning rates (lr); the norm, NaN, Inf and zeros of each
    /// gradient (gradients)
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        hide_possible_values = true
    )]
    pub monitor: Vec<Monitor>,
}

/// A callback that logs values.
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
    /// The callbacks, without duplicates.
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
