// SPDX-License-Identifier: Apache-2.0

package wirespan.agent;

import java.util.Arrays;

/**
 * For which request a thread works now. Requests that are served have numbers; 0 is nobody's.
 */
final class Here {
    private static final ThreadLocal<Here> HERE =
            new ThreadLocal<>() {
                @Override
                protected Here initialValue() {
                    return new Here();
                }
            };

    int number;
    private int[] outside = new int[8];
    private int depth;

    private Here() {}

    static Here get() {
        return HERE.get();
    }

    /** Works for another, until leave(). Returns what back() takes. */
    int enter(int another) {
        if (depth == outside.length) {
            outside = Arrays.copyOf(outside, 2 * depth);
        }
        outside[depth] = number;
        number = another;
        return depth++;
    }

    void leave() {
        if (depth > 0) {
            number = outside[--depth];
        }
    }

    /** Leaves what was entered, and all within, also what an exception went through. */
    void back(int entered) {
        depth = entered;
        number = outside[entered];
    }
}
