//! Parameters in parts, for steps on f32 copies: bounds the memory of the copies.

use std::collections::HashMap;

use tch::Tensor;

use super::moments::BLOCK;
use crate::Result;

/// Elements that are copied at once.
const PART: i64 = 1 << 20;

/// A piece of one tensor of a list, which is taken as flat.
#[derive(Debug)]
pub(super) struct Piece {
    /// The tensor's place in the list.
    pub(super) at: usize,
    pub(super) start: i64,
    pub(super) count: i64,
    /// Whether it is the whole tensor.
    whole: bool,
}

impl Piece {
    /// Its elements of a tensor that has as many as the list's: a view of a contiguous one.
    pub(super) fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        let flat = tensor.f_detach()?.f_reshape([-1])?;
        Ok(flat.f_narrow(0, self.start, self.count)?)
    }
}

/// The tensors, each in one piece and a part of its own.
pub(super) fn wholes(tensors: &[&Tensor]) -> Vec<Vec<Piece>> {
    let counts = tensors.iter().map(|tensor| tensor.numel() as i64).enumerate();
    let pieces = counts.map(|(at, count)| Piece { at, start: 0, count, whole: true });
    pieces.filter(|piece| piece.count > 0).map(|piece| vec![piece]).collect()
}

/// The tensors cut so that each part has at most [`PART`] elements.
pub(super) fn parts(tensors: &[&Tensor]) -> Vec<Vec<Piece>> {
    const { assert!(PART % BLOCK == 0, "a piece begins with a block") };
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

/// The numbers that a parameter's step counts up, for a parameter that is stepped in pieces: each of
/// them sees what the first one saw.
#[derive(Debug, Default)]
pub(super) struct Scalars(HashMap<(usize, usize), Tensor>);

impl Scalars {
    /// What `slot` of the piece's tensor counts in, whose own number is `own`.
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
