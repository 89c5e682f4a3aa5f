//! amp-core held to what the real PyTorch does (`fixtures/oracles`) and to the rules it sets itself.
//!
//! Numbers in brackets, as in `[5]`, are those of the list of semantics the project follows:
//! PyTorch's rules for the scaler (1 to 9), autocast (10 to 14), the loop (15 to 19).

mod attention;
mod autocast;
mod autocast_lists;
mod budget;
mod budget_resume;
mod callbacks;
mod checkpoint;
mod chrome_trace;
mod classification;
mod clip;
mod conv;
mod conversions;
mod data;
mod data_threads;
mod demo_training;
mod derive;
mod device;
mod errors;
mod first_step;
mod fused;
mod fused_layer_norm;
mod fused_linear;
mod gradient_storage;
mod graphs;
mod graphs_hooks;
mod graphs_optimizers;
mod islands;
mod linear;
mod log;
mod loggers;
mod memory;
mod metrics;
mod moments;
mod monitors;
mod optimizers;
mod optimizers_cuda;
mod optimizers_f16;
mod optimizers_groups;
mod optimizers_resume;
mod probes;
mod provenance;
mod recovery;
mod resume;
mod scaler;
mod scaler_misuse;
mod schedulers;
mod support;
mod tensorboard;
mod trainer;
mod trainer_steps;
mod weight_updates;
mod weights;
