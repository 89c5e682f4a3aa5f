//! Rules about the loss and the training and validation steps.

use syn::{BinOp, Expr, ExprClosure, ExprPath, Stmt};

use super::{
    Own, has_no_effect, keys, logging,
    metrics::{Declared, metrics},
    named::begins_with_a_name,
    optimizer, own_function,
};
use crate::{
    check::only,
    diag::Diagnostics,
    model::{Lightning, Loss, Metric, Own as OwnLoss, OwnHook, Pair, Scope, Step, Value},
    spec::{Arg, Attr, Spec, has, word},
    symbol,
    table::{self, HOOKS, Hook, LOSSES},
};

const LOSS_KEYS: [&str; 3] = [symbol::WITH, symbol::OF, symbol::COUNTS];

const SCOPES: &[(&str, Scope)] = &[("examples", Scope::Examples), ("batch", Scope::Batch)];

/// The stage of a run, training or validation. Each stage has its own step function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Train,
    Val,
}

impl Stage {
    /// Returns the stage's name in attributes. Logged names begin with the same word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }

    /// Returns the name under which `value` is logged in this stage, for example `val_loss`.
    pub(super) fn name_of(self, value: &str) -> String {
        format!("{}_{value}", self.word())
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Train => Self::Val,
            Self::Val => Self::Train,
        }
    }

    pub(super) fn step(self) -> &'static str {
        match self {
            Self::Train => symbol::TRAINING_STEP,
            Self::Val => symbol::VALIDATION_STEP,
        }
    }
}

/// Returns the parts of the model that only `LightningModule` has: loss, steps, optimizers and
/// hooks. Returns `None` if an error was reported.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Lightning> {
    let train = own_function(
        spec,
        symbol::TRAINING_STEP,
        "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Tensor>",
        diag,
    );
    let val = own_function(
        spec,
        symbol::VALIDATION_STEP,
        "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<()>",
        diag,
    );
    let manual = own_function(
        spec,
        symbol::MANUAL_STEP,
        "fn(&mut Self, &Batch, &mut ManualStep<'_>) -> Result<()>",
        diag,
    );
    let manual = match manual {
        Own::Generated => None,
        Own::Refused => return None,
        Own::Function { path, .. } => Some(path),
    };
    if manual.is_some() {
        let because =
            "the model optimizes manually: move this code into the function of `manual_step`";
        has_no_effect(
            spec,
            &[symbol::TRAINING_STEP, symbol::ON_BEFORE_OPTIMIZER_STEP],
            because,
            diag,
        );
        if !has(&spec.attrs, symbol::LOSS) && val.is_generated() {
            return manual_alone(spec, manual?, diag);
        }
    }
    let is_trained_by_own = manual.is_some() || !train.is_generated();
    let (loss, (metrics, complete)) = if !is_trained_by_own || val.is_generated() {
        let loss = loss(spec, diag);
        let (mut metrics, complete) = metrics(spec, [&train, &val], diag);
        if let Some(loss) = &loss {
            read_as_the_loss(loss, &mut metrics);
        }
        (loss, (metrics, complete))
    } else {
        let because = "you have written the training and the validation step: compute and log \
                       losses and metrics in these functions";
        has_no_effect(spec, &[symbol::LOSS, symbol::METRIC, symbol::LOG], because, diag);
        (None, (Vec::new(), true))
    };
    let (optimizers, hooks, further) =
        (optimizer::check(spec, diag), hooks(spec, diag), further_steps(spec, diag));
    let names = logging::Names::new(&metrics, complete, [&train, &val]);
    let logs = logging::check(spec, &names, diag);
    let step = |stage: Stage, own: Own| match own {
        Own::Refused => None,
        Own::Function { path, marked, mut pairs } => {
            let own = own_loss(&mut pairs, diag)?;
            Some(Step::Function { path, captured: marked, own })
        }
        Own::Generated => {
            let logs = logs.as_ref()?;
            let of_stage = metrics.iter().filter(|metric| metric.is_for(stage));
            Some(Step::Generated {
                loss: loss.clone()?,
                log: logs.options(stage, symbol::LOSS),
                metrics: of_stage
                    .map(|metric| Metric {
                        name: stage.name_of(&metric.name),
                        value: metric.value.clone(),
                        of: metric.of.clone(),
                        log: logs.options(stage, &metric.name),
                    })
                    .collect(),
            })
        }
    };
    complete.then_some(())?;
    let (test, predict) = further?;
    let training = match manual {
        Some(path) => Step::Manual(path),
        None => step(Stage::Train, train)?,
    };
    Some(Lightning {
        training,
        validation: Some(step(Stage::Val, val)?),
        test,
        predict,
        optimizers: optimizers?,
        hooks: hooks?,
    })
}

/// Reads the optimizers, hooks and steps of a model that has `manual_step` and no loss. Refuses
/// `#[metric]` and `#[log]`, because no generated step uses them.
fn manual_alone(spec: &Spec, path: ExprPath, diag: &Diagnostics) -> Option<Lightning> {
    let because = "the model has no generated step: log values in the function of `manual_step`";
    has_no_effect(spec, &[symbol::METRIC, symbol::LOG], because, diag);
    let (optimizers, hooks, further) =
        (optimizer::check(spec, diag), hooks(spec, diag), further_steps(spec, diag));
    let (test, predict) = further?;
    Some(Lightning {
        training: Step::Manual(path),
        validation: None,
        test,
        predict,
        optimizers: optimizers?,
        hooks: hooks?,
    })
}

/// Returns the user's functions for the test step and for predictions, each `None` if the user has
/// not written it. Returns `None` if an error was reported.
fn further_steps(spec: &Spec, diag: &Diagnostics) -> Option<(Option<ExprPath>, Option<ExprPath>)> {
    let own = |name, signature| match own_function(spec, name, signature, diag) {
        Own::Generated => Some(None),
        Own::Function { path, .. } => Some(Some(path)),
        Own::Refused => None,
    };
    let test = own(symbol::TEST_STEP, "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<()>");
    let predict =
        own(symbol::PREDICT_STEP, "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Output>");
    Some((test?, predict?))
}

/// Returns the user's functions for hooks, or `None` if an error was reported.
fn hooks(spec: &Spec, diag: &Diagnostics) -> Option<Vec<OwnHook>> {
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let found: Vec<(&'static Hook, Own)> = HOOKS
        .iter()
        .map(|hook| (hook, own_function(spec, hook.name, hook.signature, diag)))
        .collect();
    let mut hooks = Vec::new();
    for (hook, own) in found {
        match own {
            Own::Generated => {}
            Own::Function { path, marked, .. } => hooks.push(OwnHook { hook, path, late: marked }),
            Own::Refused => return None,
        }
    }
    Some(hooks)
}

fn loss(spec: &Spec, diag: &Diagnostics) -> Option<Loss> {
    let attr = has_a_loss(spec, diag)?;
    let args = attr.args.as_deref()?;
    if let Some(first) = args.first()
        && let Arg::Pair(key, _) = Arg::from(first)
        && key == symbol::WITH
    {
        let mut pairs = keys::pairs(symbol::LOSS, args, &LOSS_KEYS, diag)?;
        let own = own_loss(&mut pairs, diag)?;
        return match keys::take(&mut pairs, symbol::WITH)?.value {
            Expr::Closure(closure) => {
                takes_output_and_target(&closure, diag)?;
                is_not_divided_for_accumulation(&closure, diag)?;
                Some(Loss::Closure(closure, own))
            }
            function => Some(Loss::Function(function, own)),
        };
    }
    if let Some(Arg::Pair(key, value)) = args.first().map(Arg::from)
        && key == symbol::VALUE
    {
        keys::pairs(symbol::LOSS, args, &[symbol::VALUE], diag)?;
        return Some(Loss::Value(Value::Rust(value.clone())));
    }
    runs_under_autocast(args, diag)?;
    let (at, args) = begins_with_a_name(attr, symbol::LOSS, &table::names(LOSSES), diag)?;
    let row = table::find(LOSSES, &at.to_string())?;
    let known: Vec<&str> = row.keys().map(|key| key.name).collect();
    let pairs = keys::pairs(row.name, args, &known, diag)?;
    keys::fit(at, row, &pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    let keys = keys::words_to_values(row, pairs, diag)?;
    Some(Loss::Value(Value::Known { row, at: at.clone(), keys }))
}

/// Takes `of` and `counts` from the arguments of an attribute. Returns `None` if an error was
/// reported.
fn own_loss(pairs: &mut Vec<Pair>, diag: &Diagnostics) -> Option<OwnLoss> {
    let scope = match keys::take(pairs, symbol::OF) {
        Some(pair) => keys::choice(&pair, SCOPES, diag)?,
        None => Scope::Unknown,
    };
    let counts = keys::take(pairs, symbol::COUNTS).map(|pair| pair.value);
    Some(OwnLoss { scope, counts })
}

/// Copies the options `ignore_index` and `classes` of a classification loss to the classification
/// metrics, so that they read targets and logits as the loss does. A metric keeps the options that
/// it sets itself. A metric with its own `target` gets neither option. A metric with only its own
/// `output` gets `ignore_index`, but not `classes`.
fn read_as_the_loss(loss: &Loss, metrics: &mut [Declared]) {
    let Loss::Value(Value::Known { row, keys, .. }) = loss else { return };
    for Declared { value, of, .. } in metrics {
        let Value::Known { row: metric, keys: own, .. } = value else { continue };
        if !row.is_loss_of_classes() || !metric.is_of_classes() || of.target.is_some() {
            continue;
        }
        for pair in keys {
            let is_read = pair.key == symbol::IGNORE_INDEX
                || pair.key == symbol::CLASSES && of.output.is_none();
            let accepts = metric.keys().any(|key| pair.key == key.name);
            if is_read && accepts && own.iter().all(|other| other.key != pair.key) {
                own.push(pair.clone());
            }
        }
    }
}

/// Checks the rule: a generated step needs a loss.
fn has_a_loss<'a>(spec: &'a Spec, diag: &Diagnostics) -> Option<&'a Attr> {
    let found = only(&spec.attrs, symbol::LOSS, diag);
    if found.is_none() {
        diag.error(
            &spec.ident,
            format!("`{}` has no loss: add one, as in `#[loss(cross_entropy)]`", spec.ident),
        );
    }
    found
}

/// Checks the rule: the loss is not `binary_cross_entropy`, which takes probabilities. Every model
/// must run in every precision, but the logarithm in this loss overflows in f16, and CUDA's
/// autocast refuses the loss.
fn runs_under_autocast(args: &[Expr], diag: &Diagnostics) -> Option<()> {
    let name = args.first().and_then(word);
    if let Some(name) = name.filter(|name| *name == "binary_cross_entropy") {
        diag.error(
            name,
            "cuda autocast refuses `binary_cross_entropy`: use `binary_cross_entropy_with_logits` \
             and remove the sigmoid from the model's end",
        );
        return None;
    }
    Some(())
}

/// Checks the rule: the closure of a loss has two arguments, the output and the target.
fn takes_output_and_target(closure: &ExprClosure, diag: &Diagnostics) -> Option<()> {
    if closure.inputs.len() != 2 {
        diag.error(closure, "a loss takes two arguments: `|output, target| …`");
        return None;
    }
    Some(())
}

/// Checks the rule: the user's loss is not divided by the number of accumulated batches. The
/// trainer already divides the loss by this number N. A second division would make the gradients N
/// times too small.
fn is_not_divided_for_accumulation(closure: &ExprClosure, diag: &Diagnostics) -> Option<()> {
    let Some(divisor) = divisor(&closure.body) else {
        return Some(());
    };
    let text = quote::ToTokens::to_token_stream(divisor).to_string();
    if text.to_lowercase().contains("accum") {
        diag.error(
            divisor,
            "the trainer divides the loss by the number of accumulated batches: remove this division",
        );
        return None;
    }
    Some(())
}

/// Returns the divisor if `expr` is a division, a call such as `Ok(a / b)`, or a block that ends in
/// a division.
fn divisor(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Binary(binary) if matches!(binary.op, BinOp::Div(_)) => Some(&binary.right),
        Expr::Call(call) => call.args.first().and_then(divisor),
        Expr::Paren(paren) => divisor(&paren.expr),
        Expr::Block(block) => match block.block.stmts.last()? {
            Stmt::Expr(last, None) => divisor(last),
            _ => None,
        },
        _ => None,
    }
}
