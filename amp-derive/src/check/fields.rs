//! Rules about fields: their kinds, hyperparameters, precision.

use quote::ToTokens;
use syn::{Expr, ExprLit, Lit, ext::IdentExt};

use super::{keys, layers, only, tensors};
use crate::{
    diag::Diagnostics,
    model::{self, Default, Kind, Region, Role, Source},
    spec::{Arg, Attr, Derive, Field, Spec, has},
    suggest::{self, closest, one_of},
    symbol,
};

/// Returns all fields, or `None` if an error was reported.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Vec<model::Field>> {
    // Collecting directly into an `Option` would stop at the first error, and the others would not
    // be reported.
    let fields: Vec<Option<model::Field>> =
        spec.fields.iter().map(|field| check_field(spec, field, diag)).collect();
    fields.into_iter().collect()
}

fn check_field(spec: &Spec, field: &Field, diag: &Diagnostics) -> Option<model::Field> {
    let region = precision(field, diag);
    let kind = match has_one_kind(field, diag)? {
        attr if attr.is(symbol::HPARAM) => {
            name_is_free_in_the_builder(field, spec.derive, diag)?;
            Kind::Hparam { default: default(attr, diag)? }
        }
        attr if attr.is(symbol::STATE) => {
            Kind::State { initial: initial(attr, diag)?, saved: true }
        }
        attr if attr.is(symbol::TRANSIENT) => {
            Kind::State { initial: initial(attr, diag)?, saved: false }
        }
        attr if attr.is(symbol::PARAMETER) => {
            Kind::Tensor { role: Role::Parameter, initial: tensors::initial(attr, diag)? }
        }
        attr if attr.is(symbol::BUFFER) => {
            Kind::Tensor { role: Role::Buffer, initial: tensors::initial(attr, diag)? }
        }
        attr => {
            name_is_free_in_forward(field, diag)?;
            Kind::Layer { source: source(attr, diag)?, region: region? }
        }
    };
    Some(model::Field {
        ident: field.ident.clone(),
        ty: field.ty.clone(),
        docs: field.docs.clone(),
        kind,
    })
}

/// Checks the rule: every field has exactly one kind: hyperparameter, layer, parameter, buffer,
/// state or transient. Otherwise a layer without an attribute, for example, would be neither
/// trained nor saved, and no error would be reported.
fn has_one_kind<'a>(field: &'a Field, diag: &Diagnostics) -> Option<&'a Attr> {
    let mut kinds = symbol::FIELD_KINDS.iter().filter_map(|kind| only(&field.attrs, kind, diag));
    let Some(first) = kinds.next() else {
        // `attributes_are_in_their_place` reports an attribute that belongs on the struct.
        if field.attrs.iter().any(|attr| symbol::ON_STRUCT.iter().any(|name| attr.is(name))) {
            return None;
        }
        let name = &field.ident;
        let misspelt = field.foreign.iter().find_map(|path| {
            let meant = closest(&path.get_ident()?.to_string(), symbol::FIELD_KINDS)?;
            Some((path, meant))
        });
        match misspelt {
            Some((path, meant)) => {
                diag.error(path, format!("field `{name}`: did you mean `#[{meant}]`?"));
            }
            None => diag.error(
                name,
                format!(
                    "field `{name}` needs an attribute: `#[layer(…)]` for a module, \
                     `#[parameter(…)]` or `#[buffer(…)]` for a tensor, `#[hparam]` for a \
                     hyperparameter or `#[state]` for anything else"
                ),
            ),
        }
        return None;
    };
    let mut one = true;
    for other in kinds {
        let (name, first, second) = (&field.ident, text(first), text(other));
        diag.error(
            &other.path,
            format!("field `{name}` is `#[{first}]` already: remove `#[{first}]` or `#[{second}]`"),
        );
        one = false;
    }
    one.then_some(first)
}

/// Checks the rule: no hyperparameter has the name of a method of the builder. The setter of a
/// hyperparameter is a method with the hyperparameter's name.
fn name_is_free_in_the_builder(field: &Field, derive: Derive, diag: &Diagnostics) -> Option<()> {
    let own: &[&str] = match derive {
        Derive::Module => &["build"],
        Derive::LightningModule => &["build", "hyperparameters"],
    };
    let name = field.ident.unraw();
    if own.iter().any(|own| name == own) {
        diag.error(
            &field.ident,
            format!("`{name}` is a method of the builder: give the hyperparameter another name"),
        );
        return None;
    }
    Some(())
}

/// Checks the rule: no layer is named `cx`, because in `forward` this is the name of the context.
fn name_is_free_in_forward(field: &Field, diag: &Diagnostics) -> Option<()> {
    if field.ident == symbol::CX {
        diag.error(&field.ident, "`cx` is the context in `forward`: give the layer another name");
        return None;
    }
    Some(())
}

/// Reads the default of a hyperparameter. Checks the rule: the attribute has the form `#[hparam]`,
/// `#[hparam(default)]` or `#[hparam(default = value)]`.
fn default(attr: &Attr, diag: &Diagnostics) -> Option<Default> {
    let args = attr.args.as_deref()?;
    match args {
        [] => return Some(Default::Required),
        [only] if matches!(Arg::from(only), Arg::Word(word) if word == symbol::DEFAULT) => {
            return Some(Default::OfType);
        }
        [only] if matches!(Arg::from(only), Arg::Other(_)) => {
            let value = only.to_token_stream();
            diag.error(only, format!("write `#[hparam(default = {value})]`"));
            return None;
        }
        _ => {}
    }
    let mut pairs = keys::pairs(symbol::HPARAM, args, &[symbol::DEFAULT], diag)?;
    keys::take(&mut pairs, symbol::DEFAULT).map(|pair| Default::Expr(pair.value))
}

/// Reads the initial value of a state field. Checks the rule: the attribute has the form `#[state]`
/// or `#[state(value)]`.
fn initial(attr: &Attr, diag: &Diagnostics) -> Option<Option<Expr>> {
    match attr.args.as_deref()? {
        [] => Some(None),
        [only] => match Arg::from(only) {
            Arg::Pair(_, value) => {
                let value = value.to_token_stream();
                diag.error(only, format!("write the value alone: `#[state({value})]`"));
                None
            }
            Arg::Word(_) | Arg::Other(_) => Some(Some(only.clone())),
        },
        [_, second, ..] => {
            diag.error(second, "`#[state]` takes one value: put several into a tuple");
            None
        }
    }
}

/// Reads how a layer is built. Checks the rule: the attribute has the form `#[layer]` or
/// `#[layer(how to build it)]`.
fn source(attr: &Attr, diag: &Diagnostics) -> Option<Source> {
    match attr.args.as_deref()? {
        [] => Some(Source::Argument),
        [only] => layers::build(only, diag).map(Source::Built),
        [_, second, ..] => {
            diag.error(second, "a field holds one layer: wrap several in `sequential(…)`");
            None
        }
    }
}

const REGIONS: &[(&str, Region)] = &[
    ("fp32", Region::Fp32),
    ("fp16", Region::Fp16),
    ("bf16", Region::Bf16),
    ("fp64", Region::Fp64),
];

/// Checks the rule: `#[precision]` is on a layer and gives one precision. Returns `Some(None)` for
/// a field without the attribute, and `None` if an error was reported.
fn precision(field: &Field, diag: &Diagnostics) -> Option<Option<Region>> {
    let Some(attr) = only(&field.attrs, symbol::PRECISION, diag) else {
        return Some(None);
    };
    for kind in symbol::FIELD_KINDS.iter().filter(|kind| **kind != symbol::LAYER) {
        if has(&field.attrs, kind) {
            diag.error(
                &attr.path,
                format!(
                    "`#[precision]` is allowed only on a `#[layer]` field, but `{}` is `#[{kind}]`",
                    field.ident
                ),
            );
            return None;
        }
    }
    let args = attr.args.as_deref()?;
    let [only] = args else {
        match args.get(1) {
            Some(second) => diag.error(second, "a layer runs in one precision: keep one"),
            None => diag.error(&attr.path, format!("name the precision: {}", regions())),
        }
        return None;
    };
    let region = match Arg::from(only) {
        Arg::Word(word) => {
            let found = REGIONS.iter().find(|(name, _)| word == name);
            if found.is_none() {
                diag.error(word, unknown_region(&word.to_string()));
            }
            found.map(|(_, region)| *region)
        }
        Arg::Pair(key, value) if key == symbol::AUTOCAST => {
            let pair = model::Pair { key: key.clone(), value: value.clone() };
            keys::choice(&pair, &[(symbol::OFF, Region::AutocastOff)], diag)
        }
        Arg::Other(Expr::Lit(ExprLit { lit: Lit::Str(text), .. }))
            if REGIONS.iter().any(|(name, _)| *name == text.value()) =>
        {
            let text = text.value();
            diag.error(only, format!("write it without quotes: `#[precision({text})]`"));
            None
        }
        Arg::Pair(..) | Arg::Other(_) => {
            diag.error(only, format!("expected {}", regions()));
            None
        }
    };
    region.map(Some)
}

fn unknown_region(word: &str) -> String {
    let names: Vec<&str> = REGIONS.iter().map(|(name, _)| *name).collect();
    match closest(word, &names) {
        Some(_) => suggest::unknown("precision", word, &names),
        None => format!("unknown precision `{word}`: expected {}", regions()),
    }
}

fn regions() -> String {
    let names: Vec<&str> =
        REGIONS.iter().map(|(name, _)| *name).chain(["autocast = off"]).collect();
    one_of(&names)
}

fn text(attr: &Attr) -> String {
    attr.path.to_token_stream().to_string()
}
