//! Tests of importing transformers' `BertForSequenceClassification`.

use amp_core::{
    nn::{AttentionMask, Child, Context, TransformerEncoder},
    precision::Policy,
    prelude::*,
    weights::{Import, Imported, Origin},
};

use super::{LENGTH, assert_logits, folder, ids};
use crate::support::{message, seeded};

const WIDTH: i64 = 16;

#[derive(Module)]
#[forward(|ids: &Tensor, mask: &Tensor| {
    let places = Tensor::f_arange(LENGTH, (Kind::Int64, ids.device()))?;
    let x = word_embeddings(ids)?.f_add(&position_embeddings(&places)?)?;
    let x = norm(&x.f_add(&token_type_embeddings(&ids.f_zeros_like()?)?)?)?;
    let mask = AttentionMask::padding(&mask.f_logical_not()?);
    let x = Child::new("encoder", None, &self.encoder).forward_masked(&x, &mask, cx)?;
    head(&pooler(&x.f_select(1, 0)?)?.f_tanh()?)
})]
pub(super) struct Bert {
    #[hparam(default = 3)]
    classes: i64,
    #[layer(embedding(40, WIDTH))]
    word_embeddings: Embedding,
    #[layer(embedding(12, WIDTH))]
    position_embeddings: Embedding,
    #[layer(embedding(2, WIDTH))]
    token_type_embeddings: Embedding,
    #[layer(layer_norm(WIDTH, eps = 1e-12))]
    norm: LayerNorm,
    #[layer(transformer_encoder(WIDTH, 4, 2, dim_feedforward = 24, activation = gelu, layer_norm_eps = 1e-12))]
    encoder: TransformerEncoder,
    #[layer(linear(WIDTH, WIDTH))]
    pooler: Linear,
    #[layer(linear(WIDTH, classes))]
    head: Linear,
}

/// Maps the names of `transformers` to the names of this model.
pub(super) fn import() -> Result<Import> {
    let parts =
        ["query", "key", "value"].map(|part| format!("encoder.layer.*.attention.self.{part}.*"));
    Ok(Import::open(folder("bert").path())?
        .rename("bert.*", "*")
        .rename("embeddings.LayerNorm.*", "norm.*")
        .rename("embeddings.*", "*")
        .stack(&parts, "encoder.layers.*.self_attn.in_proj_*")
        .rename("encoder.layer.*.attention.output.dense.*", "encoder.layers.*.self_attn.out_proj.*")
        .rename("encoder.layer.*.attention.output.LayerNorm.*", "encoder.layers.*.norm1.*")
        .rename("encoder.layer.*.intermediate.dense.*", "encoder.layers.*.linear1.*")
        .rename("encoder.layer.*.output.dense.*", "encoder.layers.*.linear2.*")
        .rename("encoder.layer.*.output.LayerNorm.*", "encoder.layers.*.norm2.*")
        .rename("pooler.dense.*", "pooler.*")
        .rename("classifier.*", "head.*"))
}

fn logits(model: &Bert, policy: Policy) -> Result<Tensor> {
    amp_core::nn::place(model, policy, &Default::default())?;
    let lengths = Tensor::from_slice(&[8_i64, 5, 1]).view([-1, 1]);
    let mask = Tensor::arange(LENGTH, (Kind::Int64, Device::Cpu)).lt_tensor(&lengths);
    let on = |tensor: Tensor| tensor.to_device(policy.device);
    let logits = model.forward(&on(ids(2)), &on(mask), &Context::new(policy, false))?;
    Ok(logits.to_device(Device::Cpu))
}

#[test]
fn its_file_gives_pythons_logits() -> Result<()> {
    let _generator = seeded(0);
    let model = Bert::builder().build()?;
    let report = import()?.load_into(&model)?;
    assert_eq!((report.kept().count(), report.ignored.len()), (0, 0));
    let from = |name: &str| {
        let tensor = report.tensors.iter().find(|tensor| tensor.name == name).expect("a tensor");
        tensor.origin.clone()
    };
    let part = |part: &str| format!("bert.encoder.layer.1.attention.self.{part}.bias");
    assert_eq!(
        from("encoder.layers.1.self_attn.in_proj_bias"),
        Origin::File(["query", "key", "value"].map(part).to_vec())
    );
    let policy = Policy::new(Precision::F64True, crate::support::device());
    assert_logits(&logits(&model, policy)?, "bert");
    Ok(())
}

fn with_other_head(keep: bool) -> Result<(Bert, Result<Imported>)> {
    let _generator = seeded(0);
    let model = Bert::builder().classes(5).build()?;
    let import = import()?;
    let import = if keep { import.keep("head.*") } else { import };
    let report = import.load_into(&model);
    Ok((model, report))
}

/// With `keep`, the head keeps its initial values if its number of classes differs from that in the
/// file.
#[test]
fn a_head_of_another_size_keeps_its_initial_values() -> Result<()> {
    let before = {
        let _generator = seeded(0);
        Bert::builder().classes(5).build()?
    };
    let (model, report) = with_other_head(true)?;
    let report = report?;
    let kept: Vec<&str> = report.kept().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(kept, ["head.weight", "head.bias"]);
    let of = |model: &Bert| amp_core::nn::parameters(model).pop().expect("parameters").tensor;
    assert!(of(&model).equal(&of(&before)));
    let table = report.to_string();
    let line = table.lines().find(|line| line.starts_with("head.bias")).expect("a line");
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>().join(" "),
        "head.bias [5] float32 initial values: shape [3] in the file"
    );
    assert!(table.contains("initial values: shape [3, 16] in the file"), "{table}");
    assert!(
        table.ends_with(
            "31 of 33 tensors were loaded from the file, 2 kept their initial values, \
             0 tensors of the file were ignored"
        ),
        "{table}"
    );
    let (model, refused) = with_other_head(false)?;
    let said = message(refused);
    assert!(
        said.contains("`head.weight` has shape [3, 16] in the file, but [5, 16] in the model"),
        "{said}"
    );
    let first = |model: &Bert| amp_core::nn::parameters(model).remove(0).tensor;
    assert!(first(&model).equal(&first(&before)), "a refused file changes nothing");
    Ok(())
}
