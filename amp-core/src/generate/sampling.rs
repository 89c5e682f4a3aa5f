use tch::{Device, Kind, Tensor};

use super::refused;
use crate::{Result, random::Rng};

/// How the next token is chosen from its logits. The options are applied in the order that
/// `transformers` uses: temperature, then `top_k`, then `top_p`. The default chooses the most
/// likely token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    /// The number by which the logits are divided. A value below 1 makes likely tokens even more
    /// likely. At 0 the most likely token is chosen. Of several most likely tokens, the token with
    /// the lowest id is chosen.
    pub temperature: f64,
    /// The token is chosen from this number of most likely tokens. Tokens that are exactly as
    /// likely as the last of them are candidates too. `None` allows all tokens.
    pub top_k: Option<i64>,
    /// Nucleus sampling (Holtzman et al., arXiv:1904.09751): the token is chosen from the smallest
    /// set of most likely tokens whose probabilities add up to at least this number. `None` allows
    /// all tokens.
    pub top_p: Option<f64>,
}

impl Sampling {
    /// Creates options that sample from the model's probabilities at this temperature.
    pub fn at(temperature: f64) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Computes the probabilities of the next token from logits of shape `[…, vocabulary]`. The
    /// result has the same shape and is f64 on the CPU.
    ///
    /// ```
    /// use amp_core::{generate::Sampling, tch::Tensor};
    ///
    /// let logits = Tensor::from_slice(&[0.5_f64.ln(), 0.3_f64.ln(), 0.2_f64.ln()]);
    /// let likely = Sampling { top_k: Some(2), ..Sampling::at(1.0) }.probabilities(&logits)?;
    /// let expected = Tensor::from_slice(&[0.625, 0.375, 0.0]);
    /// assert!(likely.allclose(&expected, 1e-12, 1e-12, false));
    /// # Ok::<(), amp_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// When an option is out of range, a logit is NaN, or the largest logit is infinite.
    pub fn probabilities(&self, logits: &Tensor) -> Result<Tensor> {
        self.check()?;
        let logits = logits.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let Some(vocabulary) = logits.size().last().copied().filter(|count| *count > 0) else {
            return Err(refused(format!(
                "the logits have the shape {:?}, but need a last dimension with one logit for each token",
                logits.size()
            )));
        };
        // If a logit is NaN, the largest logit is NaN, too, so checking the largest one is enough.
        let largest = logits.f_amax([-1], true)?;
        if !largest.f_isfinite()?.f_all()?.f_int64_value(&[]).is_ok_and(|all| all == 1) {
            return Err(refused("logits are not finite: check the model's weights".to_owned()));
        }
        if self.temperature == 0.0 {
            let best = logits.f_argmax(-1, true)?;
            return Ok(logits.f_zeros_like()?.f_scatter_value(-1, &best, 1.0)?);
        }
        let mut logits = logits.f_sub(&largest)?.f_div_scalar(self.temperature)?;
        if let Some(count) = self.top_k {
            let (likeliest, _) = logits.f_topk(count.min(vocabulary), -1, true, true)?;
            let least = likeliest.f_narrow(-1, -1, 1)?;
            logits = logits.f_masked_fill(&logits.f_lt_tensor(&least)?, f64::NEG_INFINITY)?;
        }
        if let Some(share) = self.top_p {
            let (sorted, places) = logits.f_sort(-1, false)?;
            let sums = sorted.f_softmax(-1, Kind::Double)?.f_cumsum(-1, Kind::Double)?;
            let unlikely = sums.f_le(1.0 - share)?;
            // The most likely token comes last in ascending order. It always stays a candidate, so
            // that there is at least one candidate.
            let _ = unlikely.f_narrow(-1, -1, 1)?.f_fill_(0)?;
            let unlikely = unlikely.f_scatter(-1, &places, &unlikely)?;
            logits = logits.f_masked_fill(&unlikely, f64::NEG_INFINITY)?;
        }
        Ok(logits.f_softmax(-1, Kind::Double)?)
    }

    /// Chooses a token for each row of the logits, which have the shape `[N, vocabulary]`. Each row
    /// has its own random number generator in `streams`.
    pub(super) fn choose(&self, logits: &Tensor, streams: &mut [Rng]) -> Result<Vec<i64>> {
        let probabilities = self.probabilities(logits)?;
        let vocabulary = probabilities.size()[1] as usize;
        let values = Vec::<f64>::try_from(&probabilities.f_view(-1)?)?;
        let choose = |(row, stream): (&[f64], &mut Rng)| {
            // Because of rounding, the probabilities of a row do not add up to exactly 1, so the
            // random number is drawn below their actual sum.
            let mut rest = stream.uniform(0.0, row.iter().sum());
            let mut last = 0;
            for (token, probability) in (0..).zip(row) {
                if *probability > 0.0 {
                    last = token;
                    if rest < *probability {
                        break;
                    }
                    rest -= probability;
                }
            }
            last
        };
        Ok(values.chunks(vocabulary).zip(streams).map(choose).collect())
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { temperature, top_k, top_p } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(refused(format!("temperature {temperature}: it must be 0 or above")));
        }
        if let Some(count) = top_k.filter(|count| *count < 1) {
            return Err(refused(format!("top_k {count}: it must be at least 1")));
        }
        if let Some(share) = top_p.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return Err(refused(format!("top_p {share}: it must be above 0 and at most 1")));
        }
        let limits = top_k.is_some() || top_p.is_some();
        if temperature == 0.0 && limits {
            return Err(refused(
                "temperature 0 chooses the likeliest token, whatever top_k and top_p are: set a \
                 temperature above 0, or leave top_k and top_p out"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}
