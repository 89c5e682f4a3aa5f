//! Sentences of a grammar with one rule: the symbol after s is s + 1 with a probability of 0.7, and
//! s + 5 otherwise, modulo 12.

use amp_core::{
    Result,
    data::{Batch, DataModule},
    tch::Tensor,
};

use super::numbers::Numbers;

/// The number of different symbols.
const SYMBOLS: i64 = 12;
/// The probability of the more frequent next symbol.
const FREQUENT: f64 = 0.7;
/// The number of symbols of a sentence that the model reads.
const LENGTH: i64 = 16;
const TRAIN: i64 = 512;
const VAL: i64 = 128;

/// Returns training and validation sentences: `[N, 16]` symbols, and for each symbol the next one.
///
/// # Errors
/// If libtorch cannot make a tensor.
pub fn load(batch_size: i64) -> Result<DataModule> {
    let mut numbers = Numbers::new(2);
    let train = sentences(&mut numbers, TRAIN)?;
    let val = sentences(&mut numbers, VAL)?;
    Ok(DataModule::new("sentences", train, val, batch_size))
}

/// Returns the loss of the best possible model in nats, which is the entropy of the next symbol. A
/// model can only by chance have a lower loss on new sentences.
pub fn entropy() -> f64 {
    -(FREQUENT * FREQUENT.ln() + (1.0 - FREQUENT) * (1.0 - FREQUENT).ln())
}

fn sentences(numbers: &mut Numbers, count: i64) -> Result<Batch> {
    let (mut shown, mut following) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut symbol = (numbers.draw() * SYMBOLS as f64) as i64;
        for _ in 0..LENGTH {
            shown.push(symbol);
            let step = if numbers.draw() < FREQUENT { 1 } else { 5 };
            symbol = (symbol + step) % SYMBOLS;
            following.push(symbol);
        }
    }
    let tensor = |symbols: &[i64]| Tensor::f_from_slice(symbols)?.f_view([count, LENGTH]);
    Batch::new(tensor(&shown)?, tensor(&following)?)
}
