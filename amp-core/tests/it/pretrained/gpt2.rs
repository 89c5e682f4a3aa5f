//! Tests of importing transformers' `GPT2LMHeadModel` from three files with an index. The matrices
//! of this model have the shape `[in, out]`, so the import transposes them.

use std::fs;

use amp_core::{
    nn::{Context, TransformerEncoder},
    precision::Policy,
    prelude::*,
    weights::{self, Import},
};
use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

use super::{LENGTH, assert_logits, folder, ids};
use crate::support::{message, seeded};

const WIDTH: i64 = 16;

#[derive(Module)]
#[forward(|ids| {
    let places = Tensor::f_arange(LENGTH, (Kind::Int64, ids.device()))?;
    let x = wte(ids)?.f_add(&wpe(&places)?)?;
    Ok(h(&x)?.f_linear(self.wte.weight(), None::<Tensor>)?)
})]
struct Gpt2 {
    #[layer(embedding(40, WIDTH))]
    wte: Embedding,
    #[layer(embedding(12, WIDTH))]
    wpe: Embedding,
    #[layer(transformer_encoder(
        WIDTH, 4, 2,
        dim_feedforward = 4 * WIDTH,
        activation = gelu_tanh,
        norm_first = true,
        causal = true,
        norm = true,
    ))]
    h: TransformerEncoder,
}

fn import(path: &std::path::Path) -> Result<Import> {
    Ok(Import::open(path)?
        .rename("transformer.*", "*")
        .rename("ln_f.*", "h.norm.*")
        .transpose("h.*.attn.*.weight")
        .transpose("h.*.mlp.*.weight")
        .rename("h.*.attn.c_attn.*", "h.layers.*.self_attn.in_proj_*")
        .rename("h.*.attn.c_proj.*", "h.layers.*.self_attn.out_proj.*")
        .rename("h.*.mlp.c_fc.*", "h.layers.*.linear1.*")
        .rename("h.*.mlp.c_proj.*", "h.layers.*.linear2.*")
        .rename("h.*.ln_1.*", "h.layers.*.norm1.*")
        .rename("h.*.ln_2.*", "h.layers.*.norm2.*"))
}

#[rstest]
#[case::folder("")]
#[case::index("model.safetensors.index.json")]
fn its_files_give_pythons_logits(#[case] file: &str) -> Result<()> {
    let _generator = seeded(0);
    let model = Gpt2::builder().build()?;
    let files = folder("gpt2");
    import(&files.path().join(file))?.load_into(&model)?;
    let policy = Policy::new(Precision::F64True, crate::support::device());
    amp_core::nn::place(&model, policy, &Default::default())?;
    let ids = ids(5).to_device(policy.device);
    let logits = model.forward(&ids, &Context::new(policy, false))?;
    assert_logits(&logits.to_device(Device::Cpu), "gpt2");
    Ok(())
}

/// A file that this crate has saved can be imported without import steps, such as renaming tensors.
/// The file contains the metadata that transformers requires.
#[test]
fn a_file_saved_here_needs_no_steps() -> Result<()> {
    let _generator = seeded(0);
    let path = tempdir().expect("a folder");
    let file = path.path().join("model.safetensors");
    let [one, other] = [Gpt2::builder().build()?, Gpt2::builder().build()?];
    weights::save(&one, &file, Default::default())?;
    let report = Import::open(path.path())?.load_into(&other)?;
    assert_eq!(report.metadata["format"], "pt");
    let values = |model: &Gpt2| amp_core::nn::parameters(model);
    for (one, other) in values(&one).iter().zip(values(&other)) {
        assert!(one.tensor.equal(&other.tensor), "{}", one.name);
    }
    Ok(())
}

/// An index is refused if it lists a tensor in a file that does not contain this tensor, does not
/// exist, or is outside the folder of the index.
#[rstest]
#[case::other_shard(
    "transformer.wte.weight",
    "model-00003-of-00003.safetensors",
    "`transformer.wte.weight` is in model-00001-of-00003.safetensors, but the index does not list it there"
)]
#[case::one_too_many(
    "more",
    "model-00001-of-00003.safetensors",
    "`more` is not in model-00001-of-00003.safetensors, although the index lists it there"
)]
#[case::missing("more", "model-00004.safetensors", "model-00004.safetensors")]
#[case::outside("more", "../bert/model.safetensors", "is not in the index's folder")]
fn a_wrong_index_is_refused(#[case] name: &str, #[case] shard: &str, #[case] says: &str) {
    let copy = folder("gpt2");
    let index = copy.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("the index");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    value["weight_map"][name] = shard.into();
    fs::write(&index, value.to_string()).expect("the index");
    let said = message(Import::open(copy.path()));
    assert!(said.contains(says), "{said}");
}

#[test]
fn files_without_a_model_are_refused() {
    let copy = tempdir().expect("a folder");
    let said = message(Import::open(copy.path()));
    let says = "the folder has no model.safetensors.index.json and no model.safetensors";
    assert!(said.contains(says), "{said}");
    fs::write(copy.path().join("model.safetensors.index.json"), "[]").expect("a file");
    let said = message(Import::open(copy.path()));
    assert!(said.contains("not an index"), "{said}");
}
