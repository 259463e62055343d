//! Connected regions of a mask, 8-connected as in the MVTec evaluation script.

/// Labels the regions of a mask of rows of `width` pixels: 0 is background, regions count from 1
/// in the order of their first pixel. Returns the labels and how many regions there are.
pub fn label(mask: &[bool], width: usize) -> (Vec<u32>, u32) {
    assert!(width > 0 && mask.len().is_multiple_of(width), "a mask is whole rows");
    let height = mask.len() / width;
    let mut labels = vec![0_u32; mask.len()];
    let mut regions = 0;
    let mut open = Vec::new();
    for first in 0..mask.len() {
        if !mask[first] || labels[first] != 0 {
            continue;
        }
        regions += 1;
        labels[first] = regions;
        open.push(first);
        while let Some(at) = open.pop() {
            let (x, y) = (at % width, at / width);
            for ny in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for nx in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let near = ny * width + nx;
                    if mask[near] && labels[near] == 0 {
                        labels[near] = regions;
                        open.push(near);
                    }
                }
            }
        }
    }
    (labels, regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_connect_and_edges_do_not_wrap() {
        let mask: Vec<bool> = "#...\
                               .#.#\
                               ....\
                               #.##"
            .chars()
            .map(|c| c == '#')
            .collect();
        let (labels, regions) = label(&mask, 4);
        assert_eq!(regions, 4);
        assert_eq!(labels, [1, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 3, 0, 4, 4]);
    }

    #[test]
    fn empty_and_full_masks() {
        assert_eq!(label(&[false; 6], 3).1, 0);
        assert_eq!(label(&[true; 6], 3), (vec![1; 6], 1));
        assert_eq!(label(&[true; 6], 1), (vec![1; 6], 1));
    }
}
