use std::collections::VecDeque;

use tch::Tensor;

use super::{Group, ParquetTable, parallel};
use crate::{
    Error, Result,
    data::{AnyBatch, Columns, Dataset, ShuffledBlocks},
};

/// The rows of [Parquet files](ParquetTable) as a data set. The set keeps the most recently used
/// row groups in memory. With [`Loading::prefetch`](crate::data::Loading::prefetch), a thread reads
/// batches ahead of the training loop. The row groups that a batch needs are decoded by up to
/// [`ParquetTable::threads`] threads at once. Each thread needs memory for one further row group
/// while it decodes.
///
/// If all rows are shuffled, every batch has rows of nearly all row groups. Most row groups then
/// have to be read again for each batch. Use [`shuffled_groups`](Self::shuffled_groups) instead, or
/// keep all row groups in memory with [`kept`](Self::kept).
#[derive(Debug)]
pub struct ParquetSet {
    table: ParquetTable,
    columns: Columns,
    groups: Vec<Group>,
    /// For each row group, the index of its first row in the table. The last element is the number
    /// of rows of the table.
    starts: Vec<i64>,
    kept: usize,
    read: u64,
    /// The row groups in memory, in the order of their last use. The most recently used group is
    /// the last.
    cache: VecDeque<(usize, AnyBatch)>,
}

impl ParquetSet {
    pub(super) fn new(table: ParquetTable, columns: Columns) -> Self {
        let groups: Vec<Group> = table.groups().collect();
        let mut starts = vec![0];
        starts.extend(table.group_rows().iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        }));
        Self { table, columns, groups, starts, kept: 4, read: 0, cache: VecDeque::new() }
    }

    /// Sets the number of row groups that are kept in memory, at least one. The default is 4.
    #[must_use]
    pub fn kept(mut self, groups: usize) -> Self {
        self.kept = groups.max(1);
        self
    }

    /// Returns how many row groups were read from the files so far. A row group that was read twice
    /// counts twice.
    pub fn groups_read(&self) -> u64 {
        self.read
    }

    /// Returns a sampler for training. The sampler first shuffles the order of the row groups. It
    /// then shuffles the rows of every `together` row groups that follow each other in the new
    /// order. If the set [keeps](Self::kept) at least `together` row groups in memory, an epoch
    /// reads each row group once.
    ///
    /// # Errors
    /// When `together`, the number of row groups that are shuffled together, is 0.
    pub fn shuffled_groups(&self, together: usize) -> Result<ShuffledBlocks> {
        ShuffledBlocks::new(self.table.group_rows(), together)
    }

    /// Returns the index of the row group that contains a row.
    fn group_of(&self, row: i64) -> Result<usize> {
        let all = self.starts[self.groups.len()];
        match (0..all).contains(&row) {
            true => Ok(self.starts.partition_point(|start| *start <= row) - 1),
            false => Err(Error::config(format!(
                "{}: there is no row {row} in a table of {all} rows",
                self.table.path().display()
            ))),
        }
    }

    fn is_kept(&self, at: usize) -> bool {
        self.cache.iter().any(|(group, _)| *group == at)
    }

    /// Reads the row groups of `groups` that are not in memory.
    fn read(&self, groups: impl Iterator<Item = usize>) -> Result<Vec<(usize, AnyBatch)>> {
        let missing: Vec<usize> = groups.filter(|group| !self.is_kept(*group)).collect();
        let Self { table, columns, groups, .. } = self;
        parallel::each(table.threads, missing, |at| Ok((at, table.read(&[groups[at]], columns)?)))
    }

    /// Stores a row group that was just read. If too many are in memory, removes the least recently
    /// used one.
    fn keep(&mut self, read: (usize, AnyBatch)) {
        while self.cache.len() >= self.kept {
            self.cache.pop_front();
        }
        self.read += 1;
        self.cache.push_back(read);
    }

    /// Returns a row group if it is in memory, and makes it the most recently used one.
    fn kept_group(&mut self, at: usize) -> Option<&AnyBatch> {
        let place = self.cache.iter().position(|(group, _)| *group == at)?;
        let entry = self.cache.remove(place)?;
        self.cache.push_back(entry);
        self.cache.back().map(|(_, batch)| batch)
    }
}

impl Dataset for ParquetSet {
    type Batch = AnyBatch;

    fn len(&self) -> i64 {
        self.starts[self.groups.len()]
    }

    fn gather(&mut self, indices: &[i64]) -> Result<AnyBatch> {
        // Each row group that the batch needs, with the positions of its rows in the batch. A row
        // group is listed only once, so that it is read only once.
        let mut wanted: Vec<(usize, Vec<usize>)> = Vec::new();
        for (place, row) in indices.iter().enumerate() {
            let group = self.group_of(*row)?;
            match wanted.iter_mut().find(|(other, _)| *other == group) {
                Some((_, places)) => places.push(place),
                None => wanted.push((group, vec![place])),
            }
        }
        // Row groups that are in memory come first, because reading another row group may remove
        // them from memory.
        wanted.sort_by_key(|(group, _)| !self.is_kept(*group));
        let (mut parts, mut order) = (Vec::with_capacity(wanted.len()), vec![0; indices.len()]);
        let mut before = 0;
        for together in wanted.chunks(self.table.threads) {
            let mut read =
                self.read(together.iter().map(|(group, _)| *group))?.into_iter().peekable();
            for (group, places) in together {
                if let Some(new) = read.next_if(|(new, _)| new == group) {
                    self.keep(new);
                }
                let start = self.starts[*group];
                let rows: Vec<i64> = places.iter().map(|place| indices[*place] - start).collect();
                let rows = Tensor::f_from_slice(&rows)?;
                let Some(batch) = self.kept_group(*group) else {
                    unreachable!("every group of the batch is in memory");
                };
                parts.push(batch.select(&rows)?);
                for place in places {
                    order[*place] = before;
                    before += 1;
                }
            }
        }
        AnyBatch::joined(&parts)?.select(&Tensor::f_from_slice(&order)?)
    }
}
