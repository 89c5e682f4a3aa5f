//! Tests of files of weights. Saved values are restored, and an invalid file changes nothing.

use std::{collections::BTreeMap, fs, path::Path};

use amp_core::{
    Result,
    nn::{
        Context, Linear, LinearConfig, Module, Role, Sequential, Visit, Visitor, named_tensors,
        place,
    },
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
    weights::{load, save, save_tensors},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{message, model::demo, seeded};

fn tensors(module: &Sequential) -> Vec<Tensor> {
    named_tensors(module).into_iter().map(|(_, tensor, _)| tensor.detach().copy()).collect()
}

fn equal(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equal(b))
}

fn demo_from(seed: u64, precision: Precision) -> Result<Sequential> {
    let _generator = seeded(seed);
    let module = demo(0.2)?;
    place(&module, Policy::new(precision, Device::Cpu), &Default::default())?;
    Ok(module)
}

#[rstest]
#[case::f32(Precision::F32True)]
#[case::f64(Precision::F64True)]
#[case::f16(Precision::F16True)]
#[case::bf16(Precision::Bf16True)]
fn saved_weights_are_restored_bit_for_bit(#[case] precision: Precision) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let (saved, other) = (demo_from(1, precision)?, demo_from(2, precision)?);
    assert!(!equal(&tensors(&saved), &tensors(&other)));
    save(&saved, &path, BTreeMap::from([("epoch".to_owned(), "3".to_owned())]))?;
    let metadata = load(&other, &path)?;
    assert!(equal(&tensors(&saved), &tensors(&other)));
    assert_eq!(metadata["epoch"], "3");
    Ok(())
}

/// The header of the file contains PyTorch's names of tensors and safetensors' names of dtypes. The
/// test reads the header without amp-core's code.
#[test]
fn the_file_has_pytorchs_names() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    save(&demo_from(1, Precision::F32True)?, &path, BTreeMap::new())?;
    let bytes = fs::read(&path).expect("the file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + length]).expect("a JSON header");
    assert_eq!(header["0.weight"]["dtype"], "F32");
    assert_eq!(header["0.weight"]["shape"], serde_json::json!([32, 64]));
    assert_eq!(header["1.num_batches_tracked"]["dtype"], "I64");
    Ok(())
}

/// A module that reports one weight under two names.
struct Tied(Tensor);

impl Visit for Tied {
    fn visit(&self, visitor: &mut dyn Visitor) {
        for name in ["token.weight", "head.weight"] {
            visitor.tensor(name, &self.0, Role::Parameter);
        }
    }
}

impl Module for Tied {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_linear(&self.0, None::<Tensor>)?)
    }
}

/// A weight that two modules share can be loaded if a file contains any of its names: one of the
/// two (as in a file of `safetensors.torch.save_model`, which keeps the first in the alphabet), or
/// both (as in a state_dict). A file that this crate saves has only the first declared name.
#[rstest]
#[case::the_first_of_the_alphabet(&["head.weight"])]
#[case::the_first_declared(&["token.weight"])]
#[case::both(&["token.weight", "head.weight"])]
fn a_tied_weight_loads_under_any_of_its_names(#[case] names: &[&str]) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let options = (Kind::Float, Device::Cpu);
    let ones = Tensor::ones([3, 2], options);
    let named: Vec<(&str, &Tensor)> = names.iter().map(|name| (*name, &ones)).collect();
    Tensor::write_safetensors(&named, &path)?;
    let model = Tied(Tensor::zeros([3, 2], options));
    load(&model, &path)?;
    assert!(model.0.equal(&ones));

    save(&model, &path, BTreeMap::new())?;
    let saved = Tensor::read_safetensors(&path)?;
    assert_eq!(saved.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["token.weight"]);
    load(&Tied(Tensor::zeros([3, 2], options)), &path).map(drop)
}

/// If a file has none of the names of a tied weight, the weight is missing and the file is refused.
#[test]
fn a_tied_weight_may_not_be_missing() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let zeros = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
    Tensor::write_safetensors(&[("other", &zeros)], &path)?;
    let text = message(load(&Tied(zeros), &path));
    assert!(text.contains("the file has no tensor `token.weight` or `head.weight`"), "{text}");
    Ok(())
}

fn refused(change: impl Fn(&Path), expected: &str) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let (saved, other) = (demo_from(1, Precision::F32True)?, demo_from(2, Precision::F32True)?);
    save(&saved, &path, BTreeMap::new())?;
    change(&path);
    let before = tensors(&other);
    let text = message(load(&other, &path));
    assert!(text.contains(expected), "`{text}` does not say `{expected}`");
    assert!(equal(&before, &tensors(&other)), "a refused file changes nothing");
    Ok(())
}

fn rewrite(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("the file");
    change(&mut bytes);
    fs::write(path, bytes).expect("the file can be written");
}

#[test]
fn a_truncated_file_is_refused() -> Result<()> {
    let cut = |path: &Path| rewrite(path, |bytes| bytes.truncate(bytes.len() - 5));
    refused(cut, "damaged, or not a safetensors file")
}

#[test]
fn a_damaged_header_is_refused() -> Result<()> {
    let damage = |path: &Path| rewrite(path, |bytes| bytes[9] = b'!');
    refused(damage, "damaged, or not a safetensors file")
}

/// If a file was written by torch.save, the error says how to convert it. Such a file is an archive
/// or, before torch 1.6, a pickle.
#[rstest]
#[case::archive(b"PK\x03\x04\x00\x00\x08\x08\x00\x00")]
#[case::pickle(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")]
fn the_error_about_a_file_of_torch_save_says_how_to_convert_it(
    #[case] start: &'static [u8],
) -> Result<()> {
    let replace = |path: &Path| rewrite(path, |bytes| *bytes = start.to_vec());
    refused(replace, "convert it in Python with `safetensors.torch.save_file(")
}

/// A file without the batch norm's `num_batches_tracked` can be loaded, as in torch.
#[test]
fn a_count_of_batches_may_be_missing() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let (saved, other) = (demo_from(1, Precision::F32True)?, demo_from(2, Precision::F32True)?);
    let all = named_tensors(&saved);
    let left = all.iter().filter(|(name, ..)| name != "1.num_batches_tracked");
    assert!(all.len() > left.clone().count());
    save_tensors(left.map(|(name, tensor, _)| (name.clone(), tensor)), &path, BTreeMap::new())?;
    load(&other, &path)?;
    assert!(equal(&tensors(&saved), &tensors(&other)));
    Ok(())
}

#[test]
fn a_missing_file_is_refused() -> Result<()> {
    let remove = |path: &Path| fs::remove_file(path).expect("the file can be removed");
    refused(remove, "No such file")
}

#[test]
fn another_models_weights_are_refused() -> Result<()> {
    let linear = |inputs| -> Result<Sequential> {
        let _generator = seeded(0);
        Ok(Sequential::new(vec![Box::new(Linear::new(LinearConfig::new(inputs, 32))?)]))
    };
    let overwrite = |module: Sequential| {
        move |path: &Path| save(&module, path, BTreeMap::new()).expect("weights can be saved")
    };
    refused(overwrite(linear(64)?), "the file has no tensor `1.weight`")?;
    refused(
        overwrite(linear(63)?),
        "`0.weight` has shape [32, 63] in the file, but [32, 64] in the model",
    )
}

/// A file with values that the model's dtypes cannot represent is refused, and no tensor of the
/// model changes.
#[test]
fn values_that_would_change_are_refused() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let (wide, narrow) = (demo_from(1, Precision::F64True)?, demo_from(2, Precision::F16True)?);
    let before = tensors(&narrow);
    let write = |name: &str, value: &Tensor| -> Result<()> {
        let all = named_tensors(&wide).into_iter();
        let all: Vec<(String, Tensor)> =
            all.map(|(own, tensor, _)| (own, tensor.detach().copy())).collect();
        let changed = all.iter().map(|(own, tensor)| match own == name {
            true => (own.clone(), value),
            false => (own.clone(), tensor),
        });
        amp_core::weights::save_tensors(changed, &path, BTreeMap::new())
    };
    let options = (Kind::Double, Device::Cpu);
    write("0.bias", &Tensor::full([32], 1e5, options))?;
    let said = message(load(&narrow, &path));
    assert!(
        said.contains("`0.bias`: the file contains values that cannot be represented in float16"),
        "{said}"
    );
    write("1.num_batches_tracked", &Tensor::full([] as [i64; 0], 1.5, options))?;
    let said = message(load(&narrow, &path));
    assert!(
        said.contains(
            "is float64 in the file, but int64 in the model: int64 cannot represent fractions"
        ),
        "{said}"
    );
    assert!(equal(&tensors(&narrow), &before));
    write("0.bias", &Tensor::full([32], 6e4, options))?;
    load(&narrow, &path)?;
    Ok(())
}

/// A file of a model without tied weights can contain two different values for a weight that this
/// model ties. Such a file is refused.
#[test]
fn two_values_of_a_tied_weight_are_refused() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let tied = Tied(Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)));
    let [one, other] =
        [1.0, 2.0].map(|value| Tensor::full([2, 2], value, (Kind::Float, Device::Cpu)));
    let write = |second: &Tensor| {
        let tensors = [("token.weight".to_owned(), &one), ("head.weight".to_owned(), second)];
        amp_core::weights::save_tensors(tensors, &path, BTreeMap::new())
    };
    write(&other)?;
    let said = message(load(&tied, &path));
    assert!(
        said.contains("are the same tensor in the model, but have different values in the file"),
        "{said}"
    );
    write(&one)?;
    load(&tied, &path)?;
    Ok(())
}
