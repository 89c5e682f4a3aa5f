//! Tests of the inputs that a probe gets from attention, transformers and recurrent layers. With
//! these inputs, the probe can run each module a second time.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Module, Result,
    nn::{
        AttentionMask, Call, Context, EmbeddingBag, Lstm, MultiheadAttention, Probe,
        TransformerDecoderLayer, TransformerEncoder, place,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::relative, device, seeded};

#[derive(Module)]
#[forward(|x, padding: &Tensor, ids: &Tensor| {
    let (x, _) = lstm(x, None, None)?;
    let mask = AttentionMask::padding(padding);
    let x = self.attention.attend(&x, &x, &x, &mask, cx)?;
    let memory = self.encoder.forward_masked(&x, &mask, cx)?;
    let x = decoder(&x, &memory, &AttentionMask::none(), &mask)?;
    Ok(x.f_add(&bags(ids, None, None)?.f_unsqueeze(1)?)?)
})]
struct Net {
    #[layer(lstm(8, 8, batch_first = true))]
    lstm: Lstm,
    #[layer(multihead_attention(8, 2))]
    attention: MultiheadAttention,
    #[layer(transformer_encoder(8, 2, 1, dim_feedforward = 8))]
    encoder: TransformerEncoder,
    #[layer(transformer_decoder_layer(8, 2, dim_feedforward = 8, norm_first = true))]
    #[precision(fp32)]
    decoder: TransformerDecoderLayer,
    #[layer(embedding_bag(10, 8))]
    bags: EmbeddingBag,
}

/// A probe that runs each module a second time on the same input.
#[derive(Default)]
struct Again(RefCell<Vec<(String, f64)>>);

impl Probe for Again {
    fn ran(&self, call: &Call<'_>) {
        let again = (call.rerun)(call.input).expect("it ran before");
        assert_eq!(again.kind(), call.output.kind(), "{}", call.path);
        self.0.borrow_mut().push((call.path.to_owned(), relative(&again, call.output)));
    }
}

/// The probe is called for every module, with the module's path, once for each output. Running the
/// module again gives the same output.
#[rstest]
fn modules_with_several_inputs_can_run_again(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(0);
    let policy = Policy::new(precision, device());
    let net = Net::builder().build()?;
    place(&net, policy, &Default::default())?;
    let x = Tensor::randn([2, 3, 8], (precision.storage(), device()));
    let padding = Tensor::from_slice(&[false, false, true, false, false, false]).view([2, 3]);
    let ids = Tensor::arange(6, (Kind::Int64, device())).view([2, 3]);
    let again = Rc::new(Again::default());
    let cx = Context::new(policy, true).without_dropout().with_probe(again.clone());
    {
        let _autocast = policy.autocast()?;
        let _ = net.forward(&x, &padding.to_device(device()), &ids, &cx)?;
    }
    let seen = again.0.take();
    let paths: Vec<&str> = seen.iter().map(|(path, _)| path.as_str()).collect();
    let expected = [
        "lstm",
        "lstm",
        "lstm",
        "attention.out_proj",
        "attention",
        "encoder.layers.0.self_attn.out_proj",
        "encoder.layers.0.self_attn",
        "encoder.layers.0.norm1",
        "encoder.layers.0.linear1",
        "encoder.layers.0.linear2",
        "encoder.layers.0.norm2",
        "encoder.layers.0",
        "encoder.layers",
        "encoder",
        "decoder.norm1",
        "decoder.self_attn.out_proj",
        "decoder.self_attn",
        "decoder.norm2",
        "decoder.multihead_attn.out_proj",
        "decoder.multihead_attn",
        "decoder.norm3",
        "decoder.linear1",
        "decoder.linear2",
        "decoder",
        "bags",
    ];
    assert_eq!(paths, expected);
    for (path, off) in seen {
        // The outputs of the two runs may differ by rounding errors: attention projects queries,
        // keys and values in one matrix product if they are the same tensor, and in three
        // otherwise, and the two runs may differ in this.
        assert!(off < if precision == Precision::F32True { 1e-6 } else { 1e-2 }, "{path}: {off}");
    }
    Ok(())
}
