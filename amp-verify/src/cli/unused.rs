//! Refuses options that have no effect: because the command does not train, or because of the
//! precision or the device. The commands share their options, so clap accepts every option in every
//! command.

use amp_core::{
    hardware,
    optim::WeightUpdate,
    precision::{GradientStorage, Kernels, Precision},
    tch::Kind,
};
use clap::{ArgMatches, Command, error::ErrorKind, parser::ValueSource};

/// The commands that evaluate a checkpoint and do not train.
const EVALUATIONS: &[&str] = &["validate", "test-set", "predict"];

/// Options of the training loop, the optimizers and the measurement of steps.
const OF_TRAINING: &[&str] = &[
    "epochs",
    "steps",
    "max_steps",
    "limit_train_batches",
    "gradient_clip_val",
    "early_stopping",
    "patience",
    "graph",
    "on_non_finite",
    "profile",
    "trace",
];

/// Options of the loss scaler.
const OF_SCALER: &[&str] = &["init_scale", "growth_interval", "min_scale", "at_min_scale"];

/// Options that change the memory of a training step. They have no effect in the commands that
/// evaluate a checkpoint.
const OF_STEPS: &[&str] =
    &["accumulate_grad_batches", "weight_update", "moments", "gradients", "memory_budget"];

/// Options for the logged values and for the checks of a run. They have no effect in `summary`,
/// which does not train.
const OF_LOGS: &[&str] = &[
    "log_jsonl",
    "log_csv",
    "log_tensorboard",
    "log_mlflow",
    "log_wandb",
    "log_every_n_steps",
    "check",
];

/// Returns the reason why the option `id` has no effect in a command. Returns `None` if the option
/// has an effect.
fn reason(command: &str, id: &str) -> Option<&'static str> {
    let is_in = |lists: &[&[&str]]| lists.iter().any(|list| list.contains(&id));
    match command {
        name if EVALUATIONS.contains(&name) => match id {
            "set" => Some("the hyperparameters are those of the checkpoint"),
            "limit_val_batches" if name != "validate" => Some("this command does not validate"),
            _ => {
                is_in(&[OF_TRAINING, OF_SCALER, OF_STEPS]).then_some("this command does not train")
            }
        },
        "summary" if id == "limit_val_batches" => Some("this command does not validate"),
        "summary" => {
            is_in(&[OF_TRAINING, OF_SCALER, OF_LOGS]).then_some("this command does not train")
        }
        "layers" => is_in(&[OF_SCALER]).then_some("its loss scale is that of --log2-scale"),
        _ => None,
    }
}

/// Returns the reason why the option `id` has no effect together with the precision and the device
/// of the command line. Returns `None` if the option has an effect.
fn reason_of_run(given: &ArgMatches, id: &str) -> Option<&'static str> {
    match id {
        id if OF_SCALER.contains(&id) => {
            let mut precisions = given.try_get_many::<Precision>("precision").ok()??;
            let scales = precisions.any(|precision| precision.scales_loss());
            (!scales).then_some("only 16-mixed scales the loss, and the precision is another one")
        }
        "tf32" => {
            is_on_cpu(given).then_some("only CUDA devices have TF32, and the device is a CPU")
        }
        "kernels" if given.get_one(id) == Some(&Kernels::Libtorch) => is_on_cpu(given)
            .then_some("a CPU runs libtorch's kernels in any case, and the device is a CPU"),
        "weight_update" if given.get_one(id) != Some(&WeightUpdate::default()) => {
            let precisions = given.try_get_many::<Precision>("precision").ok()??.copied();
            (!has_half_weights(precisions)).then_some(
                "only bf16-true and 16-true store weights in 16 bits, and the precision is another \
                 one",
            )
        }
        "gradients" if given.get_one(id) == Some(&GradientStorage::SixteenBit) => is_on_cpu(given)
            .then_some("only CUDA devices store gradients in 16 bits, and the device is a CPU"),
        _ => None,
    }
}

/// Returns whether one of the precisions stores weights in 16 bits.
fn has_half_weights(mut precisions: impl Iterator<Item = Precision>) -> bool {
    precisions.any(|precision| matches!(precision.storage(), Kind::Half | Kind::BFloat16))
}

/// Returns whether the device is a CPU. An invalid device, which the command refuses later, is none.
fn is_on_cpu(given: &ArgMatches) -> bool {
    let device = given.try_get_one::<String>("device").ok().flatten();
    let device = device.and_then(|name| hardware::parse_device(name).ok());
    device.is_some_and(|device| !device.is_cuda())
}

/// Leaves the options without effect out of the command's help.
pub(super) fn hide(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.mut_args(|arg| match reason(&name, arg.get_id().as_str()) {
        Some(_) => arg.hide(true),
        None => arg,
    })
}

/// Checks that every option on the command line has an effect.
/// # Errors
/// When an option has no effect. The error names the option and the reason.
pub(super) fn check(grammar: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((name, given)) = matches.subcommand() else { return Ok(()) };
    let is_given = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
    let ids = given.ids().map(clap::Id::as_str);
    let why = |id: &str| reason(name, id).or_else(|| reason_of_run(given, id));
    let found = ids.filter(|id| is_given(id)).find_map(|id| Some((id, why(id)?)));
    match found {
        None => Ok(()),
        Some((id, why)) => {
            let option = id.replace('_', "-");
            let text = format!("--{option} has no effect in `{name}`: {why}; leave it out");
            Err(grammar.error(ErrorKind::ArgumentConflict, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{super::grammar, *};

    fn refusal(line: &str) -> Option<String> {
        let mut grammar = grammar();
        let matches = grammar.try_get_matches_from_mut(line.split(' ')).expect("a command line");
        let error = check(&mut grammar, &matches).err()?.to_string();
        error.lines().next().map(str::to_owned)
    }

    #[rstest]
    #[case::training(
        "amp validate --checkpoint a --epochs 3",
        "--epochs has no effect in `validate`: this command"
    )]
    #[case::a_default(
        "amp test-set --checkpoint a --patience 3",
        "--patience has no effect in `test-set`"
    )]
    #[case::moments(
        "amp predict --checkpoint a --output b --moments full",
        "--moments has no effect"
    )]
    #[case::hyperparameters(
        "amp predict --checkpoint a --output b --set width=3",
        "--set has no effect in `predict`: the hyperparameters are those of the checkpoint"
    )]
    #[case::limit(
        "amp test-set --checkpoint a --limit-val-batches 1",
        "--limit-val-batches has no effect in `test-set`: this command does not validate"
    )]
    #[case::limit_of_summary(
        "amp summary --limit-val-batches 1",
        "--limit-val-batches has no effect in `summary`: this command does not validate"
    )]
    #[case::logs("amp summary --log-csv a", "--log-csv has no effect in `summary`")]
    #[case::scale_of_another_precision(
        "amp train --init-scale 1024",
        "--init-scale has no effect in `train`: only 16-mixed scales the loss"
    )]
    #[case::growth("amp train --growth-interval 5", "--growth-interval has no effect in `train`")]
    #[case::floor(
        "amp verify --precision 32-true,bf16-mixed --min-scale 1",
        "--min-scale has no effect in `verify`: only 16-mixed"
    )]
    #[case::at_floor(
        "amp diagnose --precision bf16-mixed --at-min-scale warn",
        "--at-min-scale has"
    )]
    #[case::scale_of_layers(
        "amp layers --init-scale 8",
        "--init-scale has no effect in `layers`: its loss scale is that of --log2-scale"
    )]
    #[case::scale_of_an_evaluation("amp validate --checkpoint a --init-scale 8", "does not train")]
    #[case::tf32(
        "amp train --device cpu --tf32",
        "--tf32 has no effect in `train`: only CUDA devices have TF32"
    )]
    #[case::tf32_of_the_gate("amp gate --device cpu --tf32", "--tf32 has no effect in `gate`")]
    #[case::gradients(
        "amp verify --device cpu --gradients 16-bit",
        "--gradients has no effect in `verify`: only CUDA devices store gradients in 16 bits"
    )]
    #[case::kernels(
        "amp train --device cpu --kernels libtorch",
        "--kernels has no effect in `train`: a CPU runs libtorch's kernels in any case"
    )]
    #[case::weight_update(
        "amp train --weight-update stochastic-rounding",
        "--weight-update has no effect in `train`: only bf16-true and 16-true store weights in 16 bits"
    )]
    #[case::weight_update_of_mixed(
        "amp verify --precision 16-mixed,32-true --weight-update master-weights",
        "--weight-update has no effect in `verify`"
    )]
    fn an_option_without_effect_is_refused(#[case] line: &str, #[case] expected: &str) {
        let said = refusal(line).expect("an error");
        assert!(said.contains(expected), "{said}");
    }

    #[rstest]
    #[case(
        "amp validate --checkpoint a --batch-size 3 --device cpu --seed 1 --log-csv a --threads 1"
    )]
    #[case("amp summary --set width=3 --moments 8-bit --accumulate-grad-batches 2")]
    #[case("amp train --epochs 3 --patience 2 --set width=3")]
    #[case("amp validate --checkpoint a --limit-val-batches 1")]
    #[case("amp train --precision 16-mixed --init-scale 8 --growth-interval 5 --min-scale 1")]
    #[case("amp verify --at-min-scale warn")]
    #[case("amp diagnose --init-scale 8")]
    #[case("amp verify --device cpu --gradients full")]
    #[case("amp train --checkpoint-dir a --save-top-k 2")]
    #[case("amp gate --device cuda --kernels libtorch")]
    #[case("amp train --device cpu --kernels own --weight-update round-to-nearest")]
    #[case("amp verify --weight-update master-weights")]
    #[case("amp train --precision bf16-true --weight-update stochastic-rounding")]
    fn an_option_with_an_effect_is_accepted(#[case] line: &str) {
        assert_eq!(refusal(line), None);
    }

    #[test]
    fn the_number_of_checkpoints_needs_a_folder() {
        let line = ["amp", "train", "--save-top-k", "2"];
        let said = grammar().try_get_matches_from(line).expect_err("no folder").to_string();
        assert!(said.contains("--checkpoint-dir <FOLDER>"), "{said}");
    }

    /// Checks that each entry of `OF_TRAINING`, `OF_SCALER`, `OF_STEPS` and `OF_LOGS` is the id of an option.
    #[test]
    fn every_option_of_the_tables_exists() {
        let grammar = grammar();
        let ids = |command: &str| -> Vec<String> {
            let command = grammar.find_subcommand(command).expect("a command");
            command.get_arguments().map(|arg| arg.get_id().to_string()).collect()
        };
        for id in [OF_TRAINING, OF_SCALER, OF_STEPS].concat() {
            assert!(ids("validate").iter().any(|known| known == id), "{id}");
        }
        for id in OF_LOGS {
            assert!(ids("summary").iter().any(|known| known == id), "{id}");
        }
    }
}
