// The arguments of ctc.cu, shared by host and device code.

// Log probabilities [examples, steps, classes] and labels [examples, most_labels], with the number
// of steps and of labels of each example. Everything is on the device.
struct Examples {
  const void* log_probs;
  const long long *labels, *lengths, *counts;
  int steps, classes, most_labels, blank;
};
