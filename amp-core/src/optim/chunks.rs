//! Splits parameters into pieces of limited size, so that the f32 copies of a step need little
//! memory. The pieces whose copies are in memory at the same time are called a part.

use std::collections::HashMap;

use tch::Tensor;

use super::state::BLOCK;
use crate::Result;

/// The largest number of elements in a part (the pieces whose f32 copies exist at the same time).
const PART: i64 = 1 << 20;

/// A range of elements of one tensor in a list of tensors. The tensor's dimensions are flattened.
#[derive(Debug)]
pub(super) struct Piece {
    /// The index of the piece's tensor in the list.
    pub(super) at: usize,
    pub(super) start: i64,
    pub(super) count: i64,
    /// Whether the piece is the whole tensor.
    whole: bool,
}

impl Piece {
    /// Returns this range of elements of `tensor`, which may be the parameter, its gradient or its
    /// master weight. The result is a view if `tensor` is contiguous.
    pub(super) fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        let flat = tensor.f_detach()?.f_reshape([-1])?;
        Ok(flat.f_narrow(0, self.start, self.count)?)
    }
}

/// Returns one part for each tensor that has elements. The part consists of a single piece, which
/// is the whole tensor.
pub(super) fn wholes(tensors: &[&Tensor]) -> Vec<Vec<Piece>> {
    let counts = tensors.iter().map(|tensor| tensor.numel() as i64).enumerate();
    let pieces = counts.map(|(at, count)| Piece { at, start: 0, count, whole: true });
    pieces.filter(|piece| piece.count > 0).map(|piece| vec![piece]).collect()
}

/// Cuts the tensors into pieces, and groups the pieces into parts of at most [`PART`] elements.
pub(super) fn parts(tensors: &[&Tensor]) -> Vec<Vec<Piece>> {
    const {
        assert!(
            PART % BLOCK == 0,
            "PART must be a multiple of BLOCK, so that every piece starts at a block"
        )
    };
    let mut parts: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (at, tensor) in tensors.iter().enumerate() {
        let elements = tensor.numel() as i64;
        for start in (0..elements).step_by(PART as usize) {
            let count = PART.min(elements - start);
            let piece = Piece { at, start, count, whole: count == elements };
            match parts.last_mut() {
                Some(part) if count <= room => part.push(piece),
                _ => {
                    parts.push(vec![piece]);
                    room = PART;
                }
            }
            room -= count;
        }
    }
    parts
}

/// The step counts of parameters that are updated in pieces. The rule runs once for each piece and
/// increments the count each time, but all pieces must get the same count.
#[derive(Debug, Default)]
pub(super) struct Scalars(HashMap<(usize, usize), Tensor>);

impl Scalars {
    /// Returns the step count that the rule increments for this piece. The first piece of a
    /// parameter gets `own`, the stored count. Each later piece gets a copy of the count as it was
    /// before the step.
    pub(super) fn of(&mut self, piece: &Piece, slot: usize, own: &Tensor) -> Result<Tensor> {
        if piece.whole {
            return Ok(own.shallow_clone());
        }
        if piece.start == 0 {
            self.0.insert((piece.at, slot), own.f_detach_copy()?);
            return Ok(own.shallow_clone());
        }
        Ok(self.0[&(piece.at, slot)].f_detach_copy()?)
    }
}
