//! The names of attributes and of the arguments that they accept. Each name is defined once.

pub(crate) const AMP: &str = "amp";
pub(crate) const FORWARD: &str = "forward";
pub(crate) const BATCH: &str = "batch";
pub(crate) const LOSS: &str = "loss";
pub(crate) const METRIC: &str = "metric";
pub(crate) const LOG: &str = "log";
pub(crate) const OPTIMIZER: &str = "optimizer";
pub(crate) const SCHEDULER: &str = "scheduler";
pub(crate) const TRAINING_STEP: &str = "training_step";
pub(crate) const VALIDATION_STEP: &str = "validation_step";
pub(crate) const TEST_STEP: &str = "test_step";
pub(crate) const PREDICT_STEP: &str = "predict_step";
pub(crate) const MANUAL_STEP: &str = "manual_step";
/// The keyword `captured`. Written after a training step's function path in the attribute, it says
/// that the step may run as a CUDA graph.
pub(crate) const CAPTURED: &str = "captured";
pub(crate) const CONFIGURE_OPTIMIZERS: &str = "configure_optimizers";

pub(crate) const ON_TRAIN_START: &str = "on_train_start";
pub(crate) const ON_TRAIN_EPOCH_START: &str = "on_train_epoch_start";
pub(crate) const ON_BEFORE_OPTIMIZER_STEP: &str = "on_before_optimizer_step";
pub(crate) const ON_TRAIN_BATCH_END: &str = "on_train_batch_end";
/// The keyword `late`. Written after a hook's function path in the attribute, it says that the
/// trainer may call the hook for a step when later steps have already started.
pub(crate) const LATE: &str = "late";
pub(crate) const ON_TRAIN_EPOCH_END: &str = "on_train_epoch_end";
pub(crate) const ON_VALIDATION_EPOCH_END: &str = "on_validation_epoch_end";
pub(crate) const ON_TRAIN_END: &str = "on_train_end";

/// The attributes that a struct may have.
pub(crate) const ON_STRUCT: &[&str] = &[
    AMP,
    FORWARD,
    BATCH,
    LOSS,
    METRIC,
    LOG,
    OPTIMIZER,
    SCHEDULER,
    TRAINING_STEP,
    VALIDATION_STEP,
    TEST_STEP,
    PREDICT_STEP,
    MANUAL_STEP,
    CONFIGURE_OPTIMIZERS,
    ON_TRAIN_START,
    ON_TRAIN_EPOCH_START,
    ON_BEFORE_OPTIMIZER_STEP,
    ON_TRAIN_BATCH_END,
    ON_TRAIN_EPOCH_END,
    ON_VALIDATION_EPOCH_END,
    ON_TRAIN_END,
];

pub(crate) const HPARAM: &str = "hparam";
pub(crate) const LAYER: &str = "layer";
pub(crate) const PARAMETER: &str = "parameter";
pub(crate) const BUFFER: &str = "buffer";
pub(crate) const STATE: &str = "state";
pub(crate) const TRANSIENT: &str = "transient";
pub(crate) const PRECISION: &str = "precision";

/// The attributes that a field may have.
pub(crate) const ON_FIELD: &[&str] =
    &[HPARAM, LAYER, PARAMETER, BUFFER, STATE, TRANSIENT, PRECISION];

/// The attributes that say what a field is. Every field has exactly one of them.
pub(crate) const FIELD_KINDS: &[&str] = &[HPARAM, LAYER, PARAMETER, BUFFER, STATE, TRANSIENT];

pub(crate) const INPUTS: &str = "inputs";
pub(crate) const INPUT: &str = "input";
pub(crate) const OUTPUT: &str = "output";
pub(crate) const TARGET: &str = "target";

pub(crate) const SHAPE: &str = "shape";
pub(crate) const INIT: &str = "init";

pub(crate) const CRATE: &str = "crate";
pub(crate) const DEFAULT: &str = "default";
pub(crate) const WITH: &str = "with";
pub(crate) const VALUE: &str = "value";
pub(crate) const OF: &str = "of";
pub(crate) const COUNTS: &str = "counts";
pub(crate) const CLASSES: &str = "classes";
pub(crate) const IGNORE_INDEX: &str = "ignore_index";
pub(crate) const NAME: &str = "name";
pub(crate) const STAGE: &str = "stage";
pub(crate) const INTERVAL: &str = "interval";
pub(crate) const MONITOR: &str = "monitor";
pub(crate) const PARAMS: &str = "params";
pub(crate) const EXCEPT: &str = "except";
pub(crate) const NDIM: &str = "ndim";
pub(crate) const GROUP: &str = "group";

/// The keys that select parameters for an optimizer or a group.
pub(crate) const SELECTION: &[&str] = &[PARAMS, EXCEPT, NDIM];
pub(crate) const AUTOCAST: &str = "autocast";
pub(crate) const OFF: &str = "off";
pub(crate) const ON_STEP: &str = "on_step";
pub(crate) const ON_EPOCH: &str = "on_epoch";
pub(crate) const PROG_BAR: &str = "prog_bar";

/// The flags that `#[log]` accepts.
pub(crate) const LOG_FLAGS: &[&str] = &[ON_STEP, ON_EPOCH, PROG_BAR];

pub(crate) const SAME: &str = "same";
pub(crate) const SEQUENTIAL: &str = "sequential";
pub(crate) const REPEAT: &str = "repeat";
pub(crate) const OPTIONAL: &str = "optional";
pub(crate) const CHECKPOINT: &str = "checkpoint";
pub(crate) const ENABLED: &str = "enabled";

/// The method that runs a module with several inputs, given as a tuple.
pub(crate) const FORWARD_WITH: &str = "forward_with";
/// The name of the context argument of `forward`. A `#[forward]` closure may use this name.
pub(crate) const CX: &str = "cx";
/// The name of the argument of `configure_optimizers`. The values of an optimizer's or a
/// scheduler's keys may use this name.
pub(crate) const PLAN: &str = "plan";
/// The name of the training plan's field that contains the number of optimizer steps.
pub(crate) const STEPPING_BATCHES: &str = "estimated_stepping_batches";
/// The suffix of keys such as `weight_init`, which begin with the name of a parameter.
pub(crate) const OF_INIT: &str = "_init";
