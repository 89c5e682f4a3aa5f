use amp_core::callback::{
    Callback, GradientStatistics, LearningRateMonitor, MemoryMonitor, SpeedBenchmark,
};
use clap::{Args, ValueEnum};

/// What is measured beside the model's own values.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Log these too, separated by commas: each epoch's peak memory (memory), its time and its
    /// batches' (speed), and at the logging interval the learning rates (lr) and the norm, NaN,
    /// Inf and zeros of each gradient (gradients)
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        hide_possible_values = true
    )]
    pub monitor: Vec<Monitor>,
}

/// A callback that logs.
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
    /// The callbacks, none twice.
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
