//! Tests of recurrent layers: their dtypes, their dropout, and which inputs they refuse.

use amp_core::{
    Module, Result,
    nn::{
        Context, Embedding, Forward, Gru, GruConfig, Linear, Lstm, LstmConfig, Rnn, RnnConfig,
        RnnNonlinearity, parameters, place,
    },
    precision::{Policy, Precision, autocast_state},
    tch::{self, Device, Kind, Tensor},
};
use rstest::rstest;

use crate::{
    children::products,
    support::{
        bits::{relative, wide},
        device, message, seeded,
    },
};

fn cx(precision: Precision, training: bool) -> Context {
    Context::new(Policy::new(precision, device()), training)
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device())).to_kind(kind).set_requires_grad(true)
}

/// Runs an LSTM forward and backward in the given precision. Returns the output and the gradients.
fn ran(precision: Precision, config: LstmConfig, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
    let _generator = seeded(1);
    let policy = Policy::new(precision, device());
    let lstm = Lstm::new(config)?;
    place(&lstm, policy, &Default::default())?;
    let x = x.to_kind(precision.storage()).detach().set_requires_grad(true);
    let (output, (h, c)) = {
        let _autocast = policy.autocast()?;
        let before = autocast_state(device())?;
        let ran = lstm.forward_with((&x, None, None), &cx(precision, true))?;
        assert_eq!(autocast_state(device())?, before, "the autocast state is restored");
        ran
    };
    let expected = precision.compute();
    assert_eq!([&output, &h, &c].map(Tensor::kind), [expected; 3]);
    output.square().sum(Kind::Float).backward();
    let mut grads: Vec<Tensor> = parameters(&lstm).iter().map(|own| own.tensor.grad()).collect();
    assert!(grads.iter().all(|grad| grad.kind() == precision.storage()));
    grads.push(x.grad());
    Ok((output, grads))
}

/// Outputs have the dtype of the precision (bf16 under bf16-mixed). Outputs and gradients are close
/// to those in f64.
#[rstest]
fn each_precision_computes_in_its_dtype(
    #[values(
        Precision::F32True,
        Precision::Bf16Mixed,
        Precision::F16Mixed,
        Precision::Bf16True,
        Precision::F16True
    )]
    precision: Precision,
    #[values(1, 2)] num_layers: i64,
) -> Result<()> {
    let x = {
        let _generator = seeded(2);
        random(&[6, 3, 8], Kind::Float)
    };
    let config = LstmConfig { num_layers, bidirectional: true, ..LstmConfig::new(8, 16) };
    let (exact, exact_grads) = ran(Precision::F64True, config, &x)?;
    let (output, grads) = ran(precision, config, &x)?;
    let bound = if precision == Precision::F32True { 1e-5 } else { 0.03 };
    assert!(relative(&output, &exact) < bound, "{}", relative(&output, &exact));
    for (at, (grad, exact)) in grads.iter().zip(&exact_grads).enumerate() {
        assert!(relative(grad, exact) < 2.0 * bound, "{at}: {}", relative(grad, exact));
    }
    Ok(())
}

/// In evaluation, one call of libtorch runs all layers of an LSTM. In training with dropout, the
/// layers run one by one. In this test, the dropout probability is so small that nothing is
/// dropped. The output and the states must therefore be the same in training and in evaluation.
#[test]
fn layers_run_one_by_one_equal_layers_run_together() -> Result<()> {
    let config =
        LstmConfig { num_layers: 3, bidirectional: true, dropout: 1e-300, ..LstmConfig::new(4, 6) };
    let _generator = seeded(3);
    let lstm = Lstm::new(config)?;
    place(&lstm, Policy::new(Precision::F64True, device()), &Default::default())?;
    let x = random(&[5, 3, 4], Kind::Double);
    let lengths = Tensor::from_slice(&[2_i64, 5, 3]).to_device(device());
    for lengths in [None, Some(&lengths)] {
        let run =
            |training| lstm.forward_with((&x, None, lengths), &cx(Precision::F64True, training));
        let (one_by_one, (h, c)) = run(true)?;
        let (in_one, (all_h, all_c)) = run(false)?;
        assert!(relative(&one_by_one, &in_one) < 1e-12);
        assert!(relative(&h, &all_h) < 1e-12 && relative(&c, &all_c) < 1e-12);
    }
    Ok(())
}

/// In training, dropout acts between layers and not after the last one, with numbers from
/// libtorch's generator.
#[test]
fn dropout_acts_between_layers() -> Result<()> {
    let run = |dropout, num_layers, training, seed| -> Result<Tensor> {
        let _generator = seeded(4);
        let gru = Gru::new(GruConfig { dropout, num_layers, ..GruConfig::new(4, 6) })?;
        place(&gru, Policy::new(Precision::F64True, device()), &Default::default())?;
        let x = random(&[5, 3, 4], Kind::Double).detach();
        tch::manual_seed(seed);
        Ok(wide(&gru.forward_with((&x, None, None), &cx(Precision::F64True, training))?.0))
    };
    let plain = run(0.0, 2, true, 0)?;
    assert!(!run(0.5, 2, true, 0)?.equal(&plain));
    assert!(
        run(0.5, 2, true, 7)?.equal(&run(0.5, 2, true, 7)?),
        "the same seed gives the same dropout mask"
    );
    assert!(!run(0.5, 2, true, 7)?.equal(&run(0.5, 2, true, 8)?));
    assert!(relative(&run(0.5, 2, false, 0)?, &plain) < 1e-12, "there is no dropout in evaluation");
    assert!(run(0.5, 1, true, 0)?.equal(&run(0.0, 1, true, 0)?), "a single layer has no dropout");
    assert!(
        run(0.5, 2, true, 0)?.ne(0.0).all().int64_value(&[]) == 1,
        "no dropout after the last layer"
    );
    Ok(())
}

/// On the CPU, dropout between recurrent layers sets the same elements to zero as in libtorch's
/// layers, for padded and for packed sequences.
#[rstest]
fn dropout_drops_libtorchs_elements(#[values(false, true)] is_packed: bool) -> Result<()> {
    let _generator = seeded(6);
    let config = GruConfig { dropout: 0.5, num_layers: 3, ..GruConfig::new(4, 6) };
    let gru = Gru::new(config)?;
    let options = (Kind::Float, Device::Cpu);
    let (x, h) = (Tensor::randn([5, 3, 4], options), Tensor::zeros([3, 3, 6], options));
    let weights: Vec<Tensor> = parameters(&gru).into_iter().map(|own| own.tensor).collect();
    let lengths = Tensor::from_slice(&[5_i64, 4, 2]);
    tch::manual_seed(3);
    let expected = if is_packed {
        let (data, sizes) = x.f_internal_pack_padded_sequence(&lengths, false)?;
        let (data, _) = Tensor::f_gru_data(&data, &sizes, &h, &weights, true, 3, 0.5, true, false)?;
        Tensor::f_internal_pad_packed_sequence(&data, &sizes, false, 0.0, 5)?.0
    } else {
        x.f_gru(&h, &weights, true, 3, 0.5, true, false, false)?.0
    };
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    tch::manual_seed(3);
    let seen = gru.forward_with((&x, None, is_packed.then_some(&lengths)), &cx)?.0;
    assert!(seen.equal(&expected));
    Ok(())
}

/// Elements after a sequence's end have no effect and get no gradient.
#[rstest]
fn padding_has_no_effect(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(5);
    let policy = Policy::new(precision, device());
    let config = RnnConfig {
        num_layers: 2,
        nonlinearity: RnnNonlinearity::Relu,
        bidirectional: true,
        batch_first: true,
        ..RnnConfig::new(4, 6)
    };
    let rnn = Rnn::new(config)?;
    place(&rnn, policy, &Default::default())?;
    let lengths = Tensor::from_slice(&[1_i64, 4, 2]).to_device(device());
    let behind = Tensor::arange(4, (Kind::Int64, device()))
        .unsqueeze(0)
        .ge_tensor(&lengths.unsqueeze(1))
        .unsqueeze(-1);
    let x = random(&[3, 4, 4], Kind::Float);
    let run = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let _autocast = policy.autocast()?;
        rnn.forward_with((x, None, Some(&lengths)), &cx(precision, true))
    };
    let (output, h) = run(&x)?;
    let (other, other_h) = run(&x.detach().masked_fill(&behind, 9.0))?;
    assert!(output.equal(&other) && h.equal(&other_h));
    let zeros = |tensor: &Tensor| tensor.masked_select(&behind).ne(0.0).any().int64_value(&[]) == 0;
    assert!(zeros(&output), "the output is zero after the end");
    (output.square().sum(Kind::Float) + h.square().sum(Kind::Float)).backward();
    assert!(zeros(&x.grad()));
    Ok(())
}

#[test]
fn invalid_inputs_are_refused() -> Result<()> {
    let refused = |result: Result<()>, says: &str| {
        let text = message(result);
        assert!(text.contains(says), "{text}");
    };
    let new = |config| Lstm::new(config).map(drop);
    refused(
        new(LstmConfig { num_layers: 0, ..LstmConfig::new(3, 4) }),
        "num_layers 0, but each must be at least 1",
    );
    refused(
        new(LstmConfig { proj_size: 4, ..LstmConfig::new(3, 4) }),
        "must be below hidden_size, 4",
    );
    refused(new(LstmConfig { dropout: 2.0, ..LstmConfig::new(3, 4) }), "dropout(2)");
    let lstm = Lstm::new(LstmConfig { batch_first: true, ..LstmConfig::new(3, 4) })?;
    place(&lstm, Policy::new(Precision::F32True, device()), &Default::default())?;
    let cx = cx(Precision::F32True, true);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    let x = zeros(&[2, 5, 3]);
    let run =
        |x: &Tensor, lengths: Option<&Tensor>| lstm.forward_with((x, None, lengths), &cx).map(drop);
    run(&x, None)?;
    refused(run(&zeros(&[5, 3]), None), "is [5, 3], but must be [batch, steps, 3]");
    refused(run(&zeros(&[2, 5, 4]), None), "is [2, 5, 4], but must be [batch, steps, 3]");
    let lengths = |lengths: &[i64]| Tensor::from_slice(lengths).to_device(device());
    refused(run(&x, Some(&lengths(&[5]))), "must be [2], one for each sequence");
    refused(
        run(&x, Some(&lengths(&[5, 6]))),
        "sequence 1 has length 6, but lengths must be from 1 to 5",
    );
    refused(run(&x, Some(&lengths(&[0, 5]))), "sequence 0 has length 0");
    refused(run(&x, Some(&zeros(&[2]))), "lengths are float32, but must be integers");
    let state = zeros(&[1, 2, 4]);
    let wrong = zeros(&[1, 5, 4]);
    refused(
        lstm.forward_with((&x, Some((&state, &wrong)), None), &cx).map(drop),
        "the initial c is [1, 5, 4], but must be [1, 2, 4]",
    );
    Ok(())
}

/// A model whose recurrent layers are built by attributes. One of the layers is in a precision
/// region.
#[derive(Module)]
#[forward(|ids, lengths: &Tensor| {
    let x = words(ids)?;
    let (y, (h, _)) = lstm(&x, None, Some(lengths))?;
    let (y, _) = gru(&y, None, None)?;
    let (y, last) = rnn(&y, Some(&last_of(&h)?), None)?;
    head(&y.f_mean_dim([1].as_slice(), false, y.kind())?.f_add(&last.f_get(0)?)?)
})]
struct Net {
    #[layer(embedding(10, 4))]
    words: Embedding,
    #[layer(lstm(
        4,
        6,
        num_layers = 2,
        bidirectional = true,
        dropout = 0.1,
        batch_first = true,
        proj_size = 3
    ))]
    lstm: Lstm,
    #[layer(gru(6, 5, bias = false, batch_first = true))]
    #[precision(fp32)]
    gru: Gru,
    #[layer(rnn(5, 3, nonlinearity = relu, batch_first = true))]
    rnn: Rnn,
    #[layer(linear(3, 2))]
    head: Linear,
}

fn last_of(h: &Tensor) -> Result<Tensor> {
    Ok(h.f_narrow(0, -1, 1)?)
}

/// The dtype probe reports every matrix product under the path of its layer, in the dtype of the
/// layer's precision region.
#[test]
fn attributes_build_recurrent_layers() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let ids = Tensor::from_slice(&[1_i64, 2, 3, 4, 5, 6]).view([2, 3]);
    let lengths = Tensor::from_slice(&[2_i64, 3]);
    let found = products(Precision::Bf16Mixed, &net, |net, cx| net.forward(&ids, &lengths, cx))?;
    let (low, high) = (Kind::BFloat16, Kind::Float);
    let all = |path: &str, kind, count| vec![(path.to_owned(), kind); count];
    let expected =
        [all("lstm", low, 3), all("gru", high, 2), all("rnn", low, 2), all("head", low, 1)]
            .concat();
    assert_eq!(found, expected);
    let names: Vec<String> = parameters(&net).into_iter().map(|own| own.name).collect();
    assert!(names.contains(&"lstm.weight_hr_l1_reverse".to_owned()), "{names:?}");
    Ok(())
}
