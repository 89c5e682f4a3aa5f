//! Refuses options that have no effect, because the command does not train. The commands share
//! their options, so clap accepts every option in every command.

use clap::{ArgMatches, Command, error::ErrorKind, parser::ValueSource};

/// The commands that evaluate a checkpoint and do not train.
const EVALUATIONS: &[&str] = &["validate", "test-set", "predict"];

/// Options of the training loop, the optimizers, the loss scale and the measurement of steps.
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
    "init_scale",
    "growth_interval",
    "min_scale",
    "at_min_scale",
    "profile",
    "trace",
];

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
            _ => is_in(&[OF_TRAINING, OF_STEPS]).then_some("this command does not train"),
        },
        "summary" if id == "limit_val_batches" => Some("this command does not validate"),
        "summary" => is_in(&[OF_TRAINING, OF_LOGS]).then_some("this command does not train"),
        _ => None,
    }
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
    let found = ids.filter(|id| is_given(id)).find_map(|id| Some((id, reason(name, id)?)));
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
    fn an_option_with_an_effect_is_accepted(#[case] line: &str) {
        assert_eq!(refusal(line), None);
    }

    /// Checks that each entry of `OF_TRAINING`, `OF_STEPS` and `OF_LOGS` is the id of an option.
    #[test]
    fn every_option_of_the_tables_exists() {
        let grammar = grammar();
        let ids = |command: &str| -> Vec<String> {
            let command = grammar.find_subcommand(command).expect("a command");
            command.get_arguments().map(|arg| arg.get_id().to_string()).collect()
        };
        for id in [OF_TRAINING, OF_STEPS].concat() {
            assert!(ids("validate").iter().any(|known| known == id), "{id}");
        }
        for id in OF_LOGS {
            assert!(ids("summary").iter().any(|known| known == id), "{id}");
        }
    }
}
