//! Builds the modules of the recorded cases with several inputs.

use amp_core::{
    Module, Result,
    nn::{
        AttentionMask, AttentionOptions, BagMode, Context, Embedding, EmbeddingBag,
        EmbeddingBagConfig, EmbeddingConfig, FeedForward, Forward, Gru, GruCell, GruCellConfig,
        GruConfig, Identity, Lstm, LstmCell, LstmCellConfig, LstmConfig, MultiheadAttention,
        MultiheadAttentionConfig, Rnn, RnnCell, RnnCellConfig, RnnConfig, RnnNonlinearity,
        RotaryEmbedding, RotaryEmbeddingConfig, RotaryPairing, Transformer, TransformerConfig,
        TransformerDecoder, TransformerDecoderConfig, TransformerDecoderLayer,
        TransformerDecoderLayerConfig, TransformerEncoder, TransformerEncoderConfig,
        TransformerEncoderLayer, TransformerEncoderLayerConfig, scaled_dot_product_attention,
    },
    tch::{Kind, Tensor},
};

use super::{
    pair_cases, pooling_cases,
    several::{Runs, case},
};

/// Builds the module of the recorded case with this name.
pub(super) fn build(name: &str) -> Result<Box<dyn Runs>> {
    let config = MultiheadAttentionConfig::new(8, 2);
    let grouped = |num_kv_heads, rotary| MultiheadAttentionConfig {
        num_kv_heads,
        rotary,
        ..MultiheadAttentionConfig::new(8, 4)
    };
    let layer = TransformerEncoderLayerConfig {
        dim_feedforward: 6,
        dropout: 0.0,
        ..TransformerEncoderLayerConfig::new(8, 2)
    };
    let stack = TransformerEncoderConfig {
        dim_feedforward: 6,
        dropout: 0.0,
        norm: true,
        ..TransformerEncoderConfig::new(8, 2, 2)
    };
    let frequency =
        EmbeddingBagConfig { scale_grad_by_freq: true, ..EmbeddingBagConfig::new(6, 3) };
    let whole = TransformerConfig {
        d_model: 8,
        nhead: 2,
        num_encoder_layers: 2,
        num_decoder_layers: 2,
        dim_feedforward: 6,
        dropout: 0.0,
        ..TransformerConfig::new()
    };
    match name {
        "attention" => attention(config, &[]),
        "attention widths" => {
            attention(MultiheadAttentionConfig { kdim: 6, vdim: 5, bias: false, ..config }, &[])
        }
        "attention masks" => attention(
            MultiheadAttentionConfig { kdim: 6, ..config },
            &[Name::KeyPadding, Name::Attention],
        ),
        "attention added mask" => attention(config, &[Name::Attention, Name::KeyPadding]),
        "attention of itself" => of_itself(config, &[Name::Attention, Name::KeyPadding]),
        "attention added keys" => attention(
            MultiheadAttentionConfig { add_bias_kv: true, add_zero_attn: true, ..config },
            &[Name::Attention, Name::KeyPadding],
        ),
        "attention added zeros" => of_itself(
            MultiheadAttentionConfig { add_zero_attn: true, ..config },
            &[Name::Attention],
        ),
        "attention added bias" => {
            alone(MultiheadAttention::new(MultiheadAttentionConfig { add_bias_kv: true, ..config }))
        }
        "attention weights" => case(MultiheadAttention::new(config), |attention, x, cx| {
            let mask = AttentionMask::of(&x[3]);
            let (output, weights) =
                attention.attend_with_weights(&x[0], &x[1], &x[2], &mask, cx)?;
            Ok(vec![output, weights])
        }),
        "attention grouped" => alone(MultiheadAttention::new(grouped(2, None))),
        "attention grouped padding" => of_itself(grouped(1, None), &[Name::KeyPadding]),
        "attention interleaved" => {
            alone(MultiheadAttention::new(grouped(2, Some(RotaryPairing::Interleaved))))
        }
        "attention half_rotated" => alone(MultiheadAttention::new(MultiheadAttentionConfig {
            rotary_base: 500.0,
            ..grouped(2, Some(RotaryPairing::HalfRotated))
        })),
        "sdpa" => sdpa(AttentionOptions { scale: Some(0.3), ..Default::default() }),
        "sdpa causal" => sdpa(AttentionOptions { is_causal: true, ..Default::default() }),
        "sdpa mask" | "sdpa without keys" => sdpa(AttentionOptions::default()),
        "rotary interleaved" => {
            alone(RotaryEmbedding::new(RotaryEmbeddingConfig::new(6, RotaryPairing::Interleaved)))
        }
        "rotary half_rotated" => {
            alone(RotaryEmbedding::new(RotaryEmbeddingConfig::new(6, RotaryPairing::HalfRotated)))
        }
        "encoder layer masked" => case(TransformerEncoderLayer::new(layer), |layer, x, cx| {
            let masks = masks(&[Name::Attention, Name::KeyPadding], &x[1..]);
            Ok(vec![layer.forward_masked(&x[0], &masks, cx)?])
        }),
        "encoder layer swiglu" => {
            alone(TransformerEncoderLayer::new(TransformerEncoderLayerConfig {
                activation: FeedForward::SwiGlu,
                norm_first: true,
                layer_norm_eps: 1e-4,
                ..layer
            }))
        }
        "encoder" => case(
            TransformerEncoder::new(TransformerEncoderConfig { norm_first: true, ..stack }),
            |encoder, x, cx| {
                Ok(vec![encoder.forward_masked(&x[0], &AttentionMask::padding(&x[1]), cx)?])
            },
        ),
        "decoder layer" => decoder(TransformerDecoderLayer::new(layer)),
        "decoder layer masked" => {
            decoder(TransformerDecoderLayer::new(TransformerDecoderLayerConfig {
                activation: FeedForward::Gelu,
                norm_first: true,
                layer_norm_eps: 1e-4,
                ..layer
            }))
        }
        "decoder" => decoder(TransformerDecoder::new(TransformerDecoderConfig { ..stack })),
        "lstm" => lstm(LstmConfig::new(3, 4)),
        "lstm layers" => lstm(LstmConfig {
            num_layers: 2,
            bidirectional: true,
            batch_first: true,
            bias: false,
            ..LstmConfig::new(3, 4)
        }),
        "lstm projected" => {
            lstm(LstmConfig { num_layers: 2, proj_size: 2, ..LstmConfig::new(3, 4) })
        }
        "lstm lengths" => lstm(LstmConfig {
            num_layers: 2,
            bidirectional: true,
            batch_first: true,
            ..LstmConfig::new(3, 4)
        }),
        "gru" => with_one_state(Gru::new(GruConfig {
            num_layers: 2,
            bidirectional: true,
            ..GruConfig::new(3, 4)
        })),
        "gru lengths" => with_one_state(Gru::new(GruConfig::new(3, 4))),
        "rnn" => with_one_state(Rnn::new(RnnConfig {
            num_layers: 2,
            bias: false,
            ..RnnConfig::new(3, 4)
        })),
        "rnn relu" => with_one_state(Rnn::new(RnnConfig {
            nonlinearity: RnnNonlinearity::Relu,
            bidirectional: true,
            batch_first: true,
            ..RnnConfig::new(3, 4)
        })),
        "rnn lengths" => with_one_state(Rnn::new(RnnConfig {
            bidirectional: true,
            batch_first: true,
            ..RnnConfig::new(3, 4)
        })),
        "embedding padding" => alone(Embedding::new(EmbeddingConfig {
            padding_idx: Some(1),
            ..EmbeddingConfig::new(6, 3)
        })),
        "embedding frequency" => alone(Embedding::new(EmbeddingConfig {
            padding_idx: Some(-2),
            scale_grad_by_freq: true,
            ..EmbeddingConfig::new(6, 3)
        })),
        "embedding max_norm" => alone(Embedding::new(EmbeddingConfig {
            max_norm: Some(0.5),
            scale_grad_by_freq: true,
            ..EmbeddingConfig::new(6, 3)
        })),
        "embedding norm_type" => alone(Embedding::new(EmbeddingConfig {
            padding_idx: Some(0),
            max_norm: Some(0.4),
            norm_type: 1.0,
            ..EmbeddingConfig::new(6, 3)
        })),
        "bag max_norm" => {
            bag(EmbeddingBagConfig { max_norm: Some(0.5), ..EmbeddingBagConfig::new(6, 3) })
        }
        "bag max_norm sum" => bag(EmbeddingBagConfig {
            mode: BagMode::Sum,
            max_norm: Some(0.3),
            norm_type: f64::INFINITY,
            padding_idx: Some(2),
            ..EmbeddingBagConfig::new(6, 3)
        }),
        "bag frequency" => bag(frequency),
        "bag frequency padding" => bag(EmbeddingBagConfig { padding_idx: Some(1), ..frequency }),
        "bag frequency sum" => bag(EmbeddingBagConfig { mode: BagMode::Sum, ..frequency }),
        "lstm_cell" | "lstm_cell alone" => lstm_cell(LstmCellConfig::new(3, 4)),
        "lstm_cell without bias" => {
            lstm_cell(LstmCellConfig { bias: false, ..LstmCellConfig::new(3, 4) })
        }
        "gru_cell" => one_state_cell(GruCell::new(GruCellConfig::new(3, 4))),
        "gru_cell without bias" => {
            one_state_cell(GruCell::new(GruCellConfig { bias: false, ..GruCellConfig::new(3, 4) }))
        }
        "rnn_cell" => one_state_cell(RnnCell::new(RnnCellConfig::new(3, 4))),
        "rnn_cell relu" => one_state_cell(RnnCell::new(RnnCellConfig {
            bias: false,
            nonlinearity: RnnNonlinearity::Relu,
            ..RnnCellConfig::new(3, 4)
        })),
        "transformer" => transformer(whole),
        "transformer masked" => transformer(TransformerConfig {
            norm_first: true,
            activation: FeedForward::Gelu,
            layer_norm_eps: 1e-4,
            ..whole
        }),
        "transformer without bias" => transformer(TransformerConfig { bias: false, ..whole }),
        "bag" => bag(EmbeddingBagConfig { padding_idx: Some(1), ..EmbeddingBagConfig::new(6, 3) }),
        "bag sum" => {
            bag(EmbeddingBagConfig { mode: BagMode::Sum, ..EmbeddingBagConfig::new(6, 3) })
        }
        "bag offsets" => bag(EmbeddingBagConfig::new(6, 3)),
        "bag max" => bag(EmbeddingBagConfig {
            mode: BagMode::Max,
            include_last_offset: true,
            ..EmbeddingBagConfig::new(6, 3)
        }),
        other if other.contains("pool") => pooling_cases::build(other),
        other => pair_cases::build(other),
    }
}

#[derive(Clone, Copy)]
enum Name {
    Attention,
    KeyPadding,
}

/// Builds an attention mask from the inputs. `names` says which mask each input is.
fn masks(names: &[Name], inputs: &[Tensor]) -> AttentionMask {
    let mut masks = AttentionMask::none();
    for (name, mask) in names.iter().zip(inputs) {
        let mask = Some(mask.shallow_clone());
        match name {
            Name::Attention => masks.attn_mask = mask,
            Name::KeyPadding => masks.key_padding_mask = mask,
        }
    }
    masks
}

/// Builds a case of a module with one tensor as input.
fn alone<M: Module + 'static>(module: Result<M>) -> Result<Box<dyn Runs>> {
    case(module, |module, x, cx| Ok(vec![module.forward(&x[0], cx)?]))
}

fn attention(config: MultiheadAttentionConfig, names: &'static [Name]) -> Result<Box<dyn Runs>> {
    case(MultiheadAttention::new(config), move |attention, x, cx| {
        Ok(vec![attention.attend(&x[0], &x[1], &x[2], &masks(names, &x[3..]), cx)?])
    })
}

fn of_itself(config: MultiheadAttentionConfig, names: &'static [Name]) -> Result<Box<dyn Runs>> {
    case(MultiheadAttention::new(config), move |attention, x, cx| {
        Ok(vec![attention.attend(&x[0], &x[0], &x[0], &masks(names, &x[1..]), cx)?])
    })
}

fn sdpa(options: AttentionOptions<'static>) -> Result<Box<dyn Runs>> {
    case(Ok(Identity), move |_, x, _: &Context| {
        let options = AttentionOptions { attn_mask: x.get(3), ..options };
        Ok(vec![scaled_dot_product_attention(&x[0], &x[1], &x[2], &options)?])
    })
}

/// Builds a case of a decoder. The inputs are target and memory, then the attention masks of both,
/// and then the padding masks of both.
fn decoder<M>(module: Result<M>) -> Result<Box<dyn Runs>>
where
    M: 'static,
    M: for<'a> Forward<
            Input = (
                &'static Tensor,
                &'static Tensor,
                &'static AttentionMask,
                &'static AttentionMask,
            ),
            Output = Tensor,
        >,
{
    case(module, |module, x, cx| {
        let mask = |of: usize| {
            let mut mask = AttentionMask::none();
            mask.attn_mask = x.get(2 + of).map(Tensor::shallow_clone);
            mask.key_padding_mask = x.get(4 + of).map(Tensor::shallow_clone);
            mask
        };
        Ok(vec![module.forward_with((&x[0], &x[1], &mask(0), &mask(1)), cx)?])
    })
}

/// Returns the tensor of lengths, if there is one among the inputs, and the remaining inputs.
fn lengths(inputs: &[Tensor]) -> (Option<&Tensor>, Vec<&Tensor>) {
    let lengths = inputs.iter().find(|input| input.kind() == Kind::Int64);
    (lengths, inputs.iter().filter(|input| input.kind() != Kind::Int64).collect())
}

fn lstm(config: LstmConfig) -> Result<Box<dyn Runs>> {
    case(Lstm::new(config), |lstm, inputs, cx| {
        let (lengths, x) = lengths(inputs);
        let initial = (x.len() == 3).then(|| (x[1], x[2]));
        let (output, (h, c)) = lstm.forward_with((x[0], initial, lengths), cx)?;
        Ok(vec![output, h, c])
    })
}

/// The inputs of a recurrent layer: a sequence, an initial state and lengths.
type Sequence = (&'static Tensor, Option<&'static Tensor>, Option<&'static Tensor>);

fn with_one_state<M>(module: Result<M>) -> Result<Box<dyn Runs>>
where
    M: Forward<Input = Sequence, Output = (Tensor, Tensor)> + 'static,
{
    case(module, |module, inputs, cx| {
        let (lengths, x) = lengths(inputs);
        let (output, h) = module.forward_with((x[0], x.get(1).copied(), lengths), cx)?;
        Ok(vec![output, h])
    })
}

/// Builds a case of an embedding bag on indices, with offsets or weights.
fn bag(config: EmbeddingBagConfig) -> Result<Box<dyn Runs>> {
    case(EmbeddingBag::new(config), |bag, inputs, cx| {
        let (offsets, weights) = match inputs.get(1) {
            Some(other) if other.kind() == Kind::Int64 => (Some(other), None),
            other => (None, other),
        };
        Ok(vec![bag.forward_with((&inputs[0], offsets, weights), cx)?])
    })
}

fn lstm_cell(config: LstmCellConfig) -> Result<Box<dyn Runs>> {
    case(LstmCell::new(config), |cell, inputs, cx| {
        let states = inputs.get(1).zip(inputs.get(2));
        let (h, c) = cell.forward_with((&inputs[0], states), cx)?;
        Ok(vec![h, c])
    })
}

fn one_state_cell<M>(module: Result<M>) -> Result<Box<dyn Runs>>
where
    M: Forward<Input = (&'static Tensor, Option<&'static Tensor>), Output = Tensor> + 'static,
{
    case(module, |cell, inputs, cx| Ok(vec![cell.forward_with((&inputs[0], inputs.get(1)), cx)?]))
}

fn transformer(config: TransformerConfig) -> Result<Box<dyn Runs>> {
    case(Transformer::new(config), |transformer, x, cx| {
        let padding = |at: usize| match x.get(at) {
            Some(mask) => AttentionMask::padding(mask),
            None => AttentionMask::none(),
        };
        let target = x.get(3).map_or_else(AttentionMask::none, AttentionMask::of);
        let masks = (padding(2), target, padding(4));
        let inputs = (&x[0], &x[1], &masks.0, &masks.1, &masks.2);
        Ok(vec![transformer.forward_with(inputs, cx)?])
    })
}
